"""Models: one file a family, one line here. `forward(batch) -> dict of tensors` on a PyG Batch of whole events."""

from __future__ import annotations

from collections.abc import Sequence

from hpctrack.config import Named, lookup, parse
from hpctrack.models.attention import AttentionNetwork
from hpctrack.models.contracts import Model
from hpctrack.models.convolution import ConvolutionNetwork
from hpctrack.models.embedding import CondensationModel, EmbeddingModel, InfluencerModel
from hpctrack.models.filter import FilterNetwork
from hpctrack.models.hit_filter import HitFilter
from hpctrack.models.images.captioning import CaptioningModel
from hpctrack.models.images.convolutional import PlaneAutoencoder, PlaneConvolution, SquareAutoencoder
from hpctrack.models.images.counting import CountingModel, LineBinsModel
from hpctrack.models.images.seeded_transformer import SeededTransformer
from hpctrack.models.images.sequences import PlaneLSTM, WindowLSTM
from hpctrack.models.images.track_queries import TrackQueryModel
from hpctrack.models.interaction import InteractionNetwork
from hpctrack.models.segments.hit_graph import HitGraphNetwork
from hpctrack.models.segments.line_graph import LineGraphNetwork
from hpctrack.models.segments.refined import RefinedLineGraph
from hpctrack.models.triplet_network import TripletNetwork
from hpctrack.registry import Registry

MODELS: Registry[type[Model]] = Registry(
    "hpctrack.models",
    "model",
    {
        "attention": AttentionNetwork,
        "captioning": CaptioningModel,
        "condensation": CondensationModel,
        "convolution": ConvolutionNetwork,
        "embedding": EmbeddingModel,
        "filter": FilterNetwork,
        "hit_filter": HitFilter,
        "hit_graph": HitGraphNetwork,
        "influencer": InfluencerModel,
        "interaction": InteractionNetwork,
        "line_bins": LineBinsModel,
        "track_counting": CountingModel,
        "track_queries": TrackQueryModel,
        "plane_autoencoder": PlaneAutoencoder,
        "plane_convolution": PlaneConvolution,
        "plane_lstm": PlaneLSTM,
        "seeded_transformer": SeededTransformer,
        "square_autoencoder": SquareAutoencoder,
        "line_graph": LineGraphNetwork,
        "line_graph_refined": RefinedLineGraph,
        "triplets": TripletNetwork,
        "window_lstm": WindowLSTM,
    },
)

__all__ = ["MODELS", "Model", "build_model"]


def build_model(config: Named, features: Sequence[str], memory: str = "plain") -> Model:
    """The model that the section `model` names, on inputs `features`, in a memory mode; InputError names a bad key."""
    model = lookup(MODELS, config.name, "model")
    built = model(features, parse(model.Options, config.options, "model", "model"))
    built.set_memory(memory)
    return built
