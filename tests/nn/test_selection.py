"""Which layers sparsify takes, by name, and what it says when a name is wrong."""

from __future__ import annotations

import re
from typing import Any

import pytest
from torch import nn
from torch.nn.utils import parametrize

from tests.nn.conftest import Frozen, Net
from transposable import Pattern, PatternError, SelectionError, sparsify
from transposable.nn import sparse_layers

ALL = ["stem", "conv", "mlp.0", "mlp.2", "head"]


def changed(model: nn.Module, *args: Any, **kwargs: Any) -> list[str]:
    changes = sparsify(model, *args, **kwargs)
    assert [change.name for change in changes] == list(sparse_layers(model))
    return [change.name for change in changes]


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        (None, (), ALL),
        ("*", (), ALL),
        ("mlp.*", (), ["mlp.0", "mlp.2"]),
        ("mlp", (), None),
        (["mlp.0", "head"], (), ["mlp.0", "head"]),
        (("head", "mlp.0"), (), ["mlp.0", "head"]),
        ({"mlp.0"}, (), ["mlp.0"]),
        ("mlp.[02]", "mlp.2", ["mlp.0"]),
        (r"re:^(stem|mlp\.\d)$", (), ["stem", "mlp.0", "mlp.2"]),
        ("re:m", (), ["stem", "mlp.0", "mlp.2"]),
        (None, ["conv", "re:mlp"], ["stem", "head"]),
        ("mlp.0.weight", (), None),
    ],
)
def test_names(net: Net, include: Any, exclude: Any, expected: list[str] | None) -> None:
    if expected is None:
        with pytest.raises(SelectionError):
            sparsify(net, "2:4T", include=include, exclude=exclude)
        return
    assert changed(net, "2:4T", include=include, exclude=exclude) == expected


def test_groups_of_patterns(net: Net) -> None:
    patterns = {"mlp.0": "4:8T", "mlp.*": Pattern(2, 4), "re:^h": "1:4T"}
    changes = sparsify(net, patterns)
    assert [(change.name, str(change.pattern)) for change in changes] == [
        ("mlp.0", "4:8T"),
        ("mlp.2", "2:4"),
        ("head", "1:4T"),
    ]
    assert {name: str(layer.pattern) for name, layer in sparse_layers(net).items()} == {
        "mlp.0": "4:8T",
        "mlp.2": "2:4",
        "head": "1:4T",
    }


def test_groups_with_include_and_exclude(net: Net) -> None:
    assert changed(net, {"mlp.*": "2:4T", "*": "4:8T"}, include="*[0d]", exclude="stem") == [
        "mlp.0",
        "head",
    ]
    assert str(net.head.pattern) == "4:8T"


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8)
        self.other = nn.Linear(8, 8)
        self.b = self.a


@pytest.mark.parametrize("include", ["a", "b", "[ab]", ["b", "a"]])
def test_a_shared_module_under_each_of_its_names(include: Any) -> None:
    model = Shared()
    assert changed(model, "2:4T", include=include) == ["a"]
    assert model.b is model.a
    assert type(model.other) is nn.Linear


def test_a_shared_module_is_excluded_by_each_of_its_names() -> None:
    assert changed(Shared(), "2:4T", exclude="b") == ["other"]


def test_the_first_pattern_counts_for_a_shared_module() -> None:
    model = Shared()
    sparsify(model, {"b": "1:4T", "*": "2:4T"})
    assert str(model.a.pattern) == "1:4T"


def test_a_root_that_is_a_layer() -> None:
    model = nn.Linear(8, 8)
    assert changed(model, "2:4T") == [""]
    with pytest.raises(Exception, match=re.escape("SparseLinear (the model itself)")):
        sparsify(model, "2:4T")


class Linear(nn.Linear):
    """A subclass."""


def parametrized() -> nn.Module:
    layer = nn.Linear(8, 8)
    parametrize.register_parametrization(layer, "weight", nn.Tanh())
    return layer


@pytest.mark.parametrize(
    ("name", "module", "says"),
    [
        ("odd", Linear(8, 8), ["'odd'", "a Linear: a subclass of Linear", "only layers"]),
        ("odd", parametrized(), ["'odd'", "weight is parametrized", "remove_parametrizations"]),
        ("odd", nn.Conv3d(8, 8, 1), ["'odd'", "a Conv3d, and only", "leave it out"]),
        ("odd", nn.ReLU(), ["'odd'", "a ReLU, and only", "leave it out"]),
        ("odd.out_proj", nn.MultiheadAttention(8, 2), ["NonDynamicallyQuantizableLinear", "reads"]),
        ("odd", nn.Sequential(nn.Linear(8, 8)), ["a Sequential", "write 'odd.*'"]),
        ("odd.wrong", nn.Sequential(nn.Linear(8, 8)), ["none of the 3", "write '*odd.wrong*'"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("option", ["include", "exclude", "pattern"])
def test_names_of_what_cannot_be_sparse(
    name: str, module: nn.Module, says: list[str], option: str, unchanged: Frozen
) -> None:
    model = nn.Sequential()
    model.add_module("fine", nn.Linear(8, 8))
    model.add_module("odd", module)
    model.add_module("good", nn.Linear(8, 8))
    says = [
        text.replace("of the 3", f"of the {3 if 'Seq' in repr(module) else 2}") for text in says
    ]
    arguments = {"pattern": {name: "2:4T"}} if option == "pattern" else {option: name}
    with unchanged(model), pytest.raises(SelectionError, match=f"sparsify .{option}.") as error:
        sparsify(model, **{"pattern": "2:4T", **arguments})
    assert [text for text in says if text not in str(error.value)] == []


@pytest.mark.parametrize(
    "odd", [Linear(8, 8), parametrized(), nn.Conv3d(8, 8, 1), nn.MultiheadAttention(8, 2)]
)
def test_what_cannot_be_sparse_is_not_touched(odd: nn.Module, unchanged: Frozen) -> None:
    model = nn.Sequential(nn.Linear(8, 8), odd)
    with unchanged(odd):
        assert changed(model, "2:4T") == ["0"]


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"include": "nosuch"}, SelectionError, "'nosuch' matches none of the 5 layers"),
        ({"exclude": ["head", "nosuch"]}, SelectionError, "'nosuch' matches none"),
        ({"include": "re:("}, SelectionError, "is no regular expression"),
        ({"include": []}, SelectionError, "nothing is selected of 5 layers"),
        ({"exclude": "*"}, SelectionError, "nothing is selected of 5 layers"),
        ({"include": 3}, SelectionError, "received 3; it is a name or a list of names"),
        ({"include": [nn.Linear]}, SelectionError, "it is a name or a list of names"),
        ({"pattern": {}}, PatternError, "empty mapping"),
        ({"pattern": {nn.Linear: "2:4T"}}, SelectionError, "as a name; it is a string"),
        ({"pattern": {"mlp.*": "2:4T", "mlp.0": "4:8T"}}, SelectionError, "'mlp.0' gives no layer"),
        ({"pattern": {"head": "2:4T"}, "exclude": "head"}, SelectionError, "nothing is selected"),
        ({"pattern": "2:4X"}, PatternError, "cannot read '2:4X'"),
        ({"pattern": {"head": "2:4T", "stem": "nope"}}, PatternError, "cannot read 'nope'"),
    ],
)
def test_bad_selections(
    net: Net, arguments: dict[str, Any], error: type[Exception], says: str, unchanged: Frozen
) -> None:
    with unchanged(net), pytest.raises(error, match=re.escape(says)):
        sparsify(net, **{"pattern": "2:4T", **arguments})


def test_a_model_without_such_layers() -> None:
    with pytest.raises(SelectionError, match="Sequential has no layer that can be sparse"):
        sparsify(nn.Sequential(nn.ReLU()), "2:4T")
