"""Item: magnitude kept by each pattern (figure 3b), on the last layers of trained networks."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import nn

from experiments.paper import networks
from experiments.paper.common import PATTERNS, Session
from experiments.runs import machine
from transposable.analysis import retention
from transposable.export import Choice

ITEM: Final = "retention"
LAST: Final = {"resnet20_jpeg": "layer3.*", "resnet20": "layer3.*", "resnet32": "layer3.*"}
"""The last stage of a ResNet; of the encoder all layers are looked at."""
GAUSSIAN: Final = "Gaussian 1024 x 1024"


def run(session: Session) -> None:
    session.need(ITEM, networks.NEEDED)
    torch.set_num_threads(session.threads)
    found = []
    for name, layers in networks.LAYERS.items():
        chosen = LAST.get(name, layers[0])
        found.append(measured(name, networks.load(session, name), chosen))
        print(f"{name}: {len(found[-1]['layers'])} layers", flush=True)
    found.append(measured(GAUSSIAN, gaussian(), "*"))
    session.save(ITEM, {"networks": found, "machine": machine()})


def gaussian() -> nn.Module:
    """One layer with random weights: what the patterns cost where nothing was learned."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1024, 1024, bias=False))
    nn.init.normal_(net[0].weight)
    return net


def measured(name: str, net: nn.Module, chosen: str) -> dict[str, Any]:
    """Kept magnitude relative to the largest half wherever it lies, by layer and pattern."""
    found = retention(net, PATTERNS, choice=Choice(include=[chosen]))
    totals = {str(pattern): found.total(pattern) for pattern in found.patterns}
    unproved = [text for text, total in totals.items() if total.proved != total.layers]
    if unproved:
        raise RuntimeError(f"retention of {name}: masks of {unproved} are not proved optimal")
    return {
        "network": name,
        "chosen": chosen,
        "layers": [
            {
                "name": layer.name,
                "shape": list(layer.shape),
                "relative": {str(one.pattern): one.relative for one in layer.kept},
            }
            for layer in found.layers
        ],
        "total": {text: total.relative for text, total in totals.items()},
        "last": found.layers[-1].name,
    }
