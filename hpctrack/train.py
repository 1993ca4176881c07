"""`torchrun -m hpctrack.train CONFIG [key.sub=value …]`: train a model; the same command again resumes it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import hpctrack.parallel.launched  # noqa: F401 - first
from hpctrack.benchmarks.peers import counterfactual
from hpctrack.config import RunConfig, load_config
from hpctrack.errors import MachineError
from hpctrack.files.lock import Owner, only_writer
from hpctrack.parallel.collectives import on_main
from hpctrack.parallel.env import Env, distributed, launcher_argument
from hpctrack.parallel.preemption import Preemption
from hpctrack.parallel.watchdog import Watchdog
from hpctrack.process import arguments
from hpctrack.process.ends import verb
from hpctrack.training.optimizers import learning_rate, set_learning_rate
from hpctrack.training.step import train_step
from hpctrack.training.telemetry import synchronize
from hpctrack.training.trainer import Trainer


def parser() -> arguments.Parser:
    """The verb's options."""
    p = arguments.Parser(prog="hpctrack train", description=__doc__)
    p.add_argument(
        "config", help="a YAML file, or the name of a recipe (`hpctrack recipes`); a file that exists comes first"
    )
    p.add_argument("overrides", nargs="*", metavar="key.sub=value", help="set a key of the recipe")
    launcher_argument(p)
    return p


@verb("train")
def main(argv: Sequence[str] | None = None) -> int:
    """Command line of the verb."""
    args = parser().parse_args(argv)
    config = load_config(args.config, args.overrides)
    settings = config.model_dump(mode="json")
    with distributed(config.parallel, config.train.threads, "train", settings) as env:
        return train(config, env)


def train(config: RunConfig, env: Env) -> int:
    """Train to the last step, from the newest checkpoint of the run if there is one; the verb's exit code.

    The run's folder has one owner, rank 0; InputError if another process writes there.
    """
    with on_main(lambda: only_writer(Path(config.run)), env) as owner:
        return train_owned(config, env, owner)


def train_owned(config: RunConfig, env: Env, owner: Owner | None) -> int:
    """`train`, by the owner of the run's folder."""
    total = config.train.steps
    with Preemption() as preemption, Watchdog(config.parallel.timeout_s, env) as watchdog:
        trainer = Trainer(config, env, watchdog, owner)
        trainer.resume()
        if trainer.pending:
            after_step(trainer)
        batches = trainer.batches()
        while trainer.step < total:
            trainer.alive(f"step {trainer.step + 1}")
            begin = synchronize(env.device)
            micro_batches, modes = next(batches)
            loaded = synchronize(env.device)

            lr = learning_rate(trainer.step, total, config.optim, config.plan)
            set_learning_rate(trainer.engine.optimizer, lr)
            try:
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
        trainer.close(counterfactual)
    return 0


def after_step(trainer: Trainer) -> None:
    """What is due after some steps and after the last: a checkpoint first, then validation and tuning."""
    every, last = trainer.config.train, trainer.step == trainer.config.train.steps
    saves, validates = (last or trainer.step % n == 0 for n in (every.checkpoint_every, every.valid_every))
    if saves:
        trainer.save(pending=validates)
    if validates:
        trainer.validate()
    if last:
        trainer.tune()
    if saves and validates:
        trainer.save()  # what has come of it; the weights stand


if __name__ == "__main__":
    raise SystemExit(main())
