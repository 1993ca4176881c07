"""The loop of a training run: a step, what is due after it, the next one."""

from __future__ import annotations

from pathlib import Path

from hpctrack.config import RunConfig
from hpctrack.errors import MachineError
from hpctrack.files.lock import only_writer
from hpctrack.parallel.collectives import on_main
from hpctrack.parallel.env import Env
from hpctrack.parallel.preemption import Preemption
from hpctrack.parallel.watchdog import Watchdog
from hpctrack.training.build import build
from hpctrack.training.optimizers import learning_rate, set_learning_rate
from hpctrack.training.planner import Rules
from hpctrack.training.step import train_step
from hpctrack.training.telemetry import synchronize
from hpctrack.training.trainer import Trainer


def train(config: RunConfig, env: Env, peers: Rules | None = None) -> int:
    """Train to the last step, from the newest checkpoint of the run if there is one; the verb's exit code.

    The run's folder has one owner, rank 0; InputError if another process writes there. `peers`: rules for sharing
    events among ranks, whose balance is said beside the run's own in the end.
    """
    total = config.train.steps
    with (
        on_main(lambda: only_writer(Path(config.run)), env) as owner,
        Preemption() as preemption,
        Watchdog(config.parallel.timeout_s, env) as watchdog,
    ):
        trainer = build(config, env, watchdog, owner)
        trainer.resume()
        if trainer.pending:
            after_step(trainer)
        batches = trainer.batches()
        while trainer.step < total:
            trainer.alive(f"step {trainer.step + 1}")
            begin = synchronize(env.device)
            with trainer.profiler.span("data"):
                micro_batches, modes = next(batches)
            loaded = synchronize(env.device)

            lr = learning_rate(trainer.step, total, config.optim, config.plan)
            set_learning_rate(trainer.engine.optimizer, lr)
            try:
                with trainer.profiler.step(trainer.step + 1):
                    result = train_step(
                        trainer.engine,
                        trainer.loss,
                        micro_batches,
                        config.optim.clip_norm,
                        modes,
                        cost=trainer.planner.cost if trainer.probe() else None,
                        expected=trainer.planner.step_events(trainer.step),
                        stop=preemption.noticed,
                        memory=trainer.memory if trainer.memory.auto else None,
                        measure=trainer.measure(),
                    )
            except MachineError as error:
                raise MachineError(f"step {trainer.step + 1}: {error}") from None
            trainer.step += 1
            trainer.profiler.parts(result.parts)

            trainer.observe(result, lr, step_s=synchronize(env.device) - begin, data_s=loaded - begin)
            if trainer.step == trainer.planner.epoch_end(trainer.step - 1):
                trainer.learn()
            if trainer.step == total or trainer.step % config.train.log_every == 0:
                trainer.log()
            if result.stop:
                code = preemption.agree(env)
                trainer.stop(preemption.said(code))
                return code
            after_step(trainer)
        trainer.close(peers)
    return 0


def after_step(trainer: Trainer) -> None:
    """What is due after some steps and after the last: a checkpoint first, then validation and tuning."""
    options = trainer.options
    last = trainer.step == options.steps
    saves, validates = (last or trainer.step % n == 0 for n in (options.checkpoint_every, options.valid_every))
    if saves:
        with trainer.profiler.span("checkpoint"):
            trainer.save(pending=validates)
    if validates:
        with trainer.profiler.span("validation"):
            trainer.validate()
    if last:
        with trainer.profiler.span("tuning"):
            trainer.tune()
    if saves and validates:
        trainer.save()  # what has come of it; the weights stand
