"""Pictures of filters: what excites a convolution, for any model that has one; and the page that shows them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from hpctrack import filters as filters_verb
from hpctrack import report
from hpctrack.config import Named
from hpctrack.errors import InputError
from hpctrack.inspection import filters
from hpctrack.models import build_model
from hpctrack.testing.toys import FEATURES

CAPTIONING = {"name": "captioning", "planes": 12, "columns": 10, "channels": [3, 0, 4], "width": 5}


def small(**model):
    torch.manual_seed(0)
    return build_model(Named(**CAPTIONING | model), ["plane", "column"])


@pytest.fixture
def written(tmp_path):
    """A filters.json of an untrained model."""
    found = filters.describe(small(), most=3, steps=2, seed=0)
    about = {"format": "hpctrack-filters", "version": 1, "run": "mine", "model": "captioning", "step": 5}
    about |= {"command": ["hpctrack", "filters", "runs/mine"], "settings": {"seed": 0, "steps": 2, "rate": 1.0}}
    path = tmp_path / "filters.json"
    path.write_text(json.dumps(about | found))
    return path


def test_steps_excite_the_filter_and_leave_the_model_as_it_was():
    model = small()
    excited = filters.Excited(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for layer in excited.layers.values():
        start, end = (excited.pictures(layer, 4, steps, seed=0) for steps in (0, 20))
        means = [filters.inner(excited.activation(layer, image)).mean((2, 3)).diagonal() for image in (start, end)]
        assert (means[1] > means[0]).all()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_first_filters_best_image_has_the_signs_of_its_weights():
    """A linear filter's mean activation rises with the sum of its weights alone, away from the border."""
    excited = filters.Excited(small())
    picture = excited.pictures(excited.first, 3, 20, seed=1)[:, 0, 3:-3, 3:-3]
    total = excited.first.weight.sum((1, 2, 3))
    assert torch.equal((picture.mean((1, 2)) > 0.5), total > 0)


def test_images_with_more_axes_are_shown_as_their_mean():
    class Deep(nn.Module):
        n_features = 2

        def __init__(self):
            super().__init__()
            self.see = nn.Sequential(nn.Conv3d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv3d(2, 5, 3, padding=1))

        def forward(self, batch):
            return self.see(batch.x.new_zeros(batch.num_graphs, 1, 4, 6, 7))

    found = filters.describe(Deep(), most=2, steps=1, seed=0)
    assert np.shape(found["weights"]) == (2, 3, 3)
    assert [np.shape(layer["pictures"]) for layer in found["layers"]] == [(2, 4, 5), (2, 4, 5)]
    assert [layer["filters"] for layer in found["layers"]] == [2, 5]


def test_a_model_without_convolutions_is_one_line(tmp_path, capsys):
    with pytest.raises(InputError, match="no convolution"):
        filters.Excited(build_model(Named(name="filter", width=4), FEATURES))
    assert filters_verb.main(["influencer-500", "--out", str(tmp_path / "f.json")]) == 2
    assert "influencer-500: model 'influencer': the model has no convolution" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_page_shows_a_picture_a_layer(written, tmp_path):
    assert report.main(["--filters", str(written), "--out", str(tmp_path / "page.html")]) in (None, 0)
    text = (tmp_path / "page.html").read_text()
    assert text.count("data:image/svg+xml") == 3 and "Convolution see.0, kernel 3 x 3: all 3 filters." in text
    assert "the first 3 of 4 filters" in text and "http://" not in text.replace("http://www.w3.org", "")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 9}, r"format and version are \('hpctrack-filters', 9\)"),
        ({"layers": []}, "key 'layers'"),
        ({"weights": [[[1.0], [1.0, 2.0]]]}, "key 'weights': .*one shape"),
    ],
)
def test_what_is_no_such_file_is_one_line(written, change, said):
    written.write_text(json.dumps(json.loads(written.read_text()) | change))
    with pytest.raises(InputError, match=said):
        report.load_filters(written)
