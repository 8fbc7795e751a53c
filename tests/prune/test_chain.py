"""Blocks replayed one by one: the very same masks and weights as by running the whole model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from transposable.prune import PruneReport, driver, prune_model


def both(
    model: nn.Module, data: list[Any], monkeypatch: pytest.MonkeyPatch, **options: Any
) -> tuple[PruneReport, nn.Module, int, int]:
    """Prune with chains and without; the numbers of module calls that it took."""
    other = copy.deepcopy(model)
    with Counted(model) as ours:
        found = prune_model(model, "2:4T", calibration=data, **options)
    monkeypatch.setattr(driver, "CHAINS", False)
    with Counted(other) as theirs:
        wanted = prune_model(other, "2:4T", calibration=data, **options)
    assert [layer.name for layer in found.layers] == [layer.name for layer in wanted.layers]
    for mine, reference in zip(found.layers, wanted.layers, strict=True):
        assert torch.equal(mine.mask, reference.mask), mine.name
        assert (mine.error, mine.samples) == (reference.error, reference.samples)
    for name, value in other.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert not any("replayed" in note for note in wanted.notes)
    return found, model, ours.calls, theirs.calls


class Counted:
    """Counts the calls of Linear, Conv1d and Conv2d layers."""

    def __init__(self, model: nn.Module) -> None:
        self.calls = 0
        self.model = model

    def __enter__(self) -> Counted:
        def count(*_: Any) -> None:
            self.calls += 1

        kinds = (nn.Linear, nn.Conv1d, nn.Conv2d)
        self.handles = [
            module.register_forward_hook(count)
            for module in self.model.modules()
            if isinstance(module, kinds) or type(module).__name__ == "Conv1D"
        ]
        return self

    def __exit__(self, *_: Any) -> None:
        for handle in self.handles:
            handle.remove()


def tokens(lengths: tuple[int, ...], padded: bool = False) -> list[dict[str, torch.Tensor]]:
    random = torch.Generator().manual_seed(1)
    batches = []
    for length in lengths:
        ids = torch.randint(0, 50, (3, length), generator=random)
        batch = {"input_ids": ids}
        if padded:
            batch["attention_mask"] = torch.ones_like(ids)
            batch["attention_mask"][1, length // 2 :] = 0
        batches.append(batch)
    return batches


def bert() -> nn.Module:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    return BertModel(config)


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
    )
    return LlamaForCausalLM(config)


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=50, n_positions=32, n_embd=16, n_layer=4, n_head=2)
    return GPT2LMHeadModel(config)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("make", [bert, llama, gpt2])
def test_transformers(
    make: Callable[[], nn.Module], padded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = make().train()
    config: Any = model.config
    cached = config.use_cache
    data = tokens((8, 12, 8, 5), padded)
    exclude = [name for name in ("lm_head",) if hasattr(model, name)]
    found, model, ours, theirs = both(model, data, monkeypatch, exclude=exclude)
    assert "4 blocks replayed one by one" in found.notes
    assert ours < 0.7 * theirs
    assert config.use_cache == cached
    assert model.training


def test_a_cache_among_the_arguments_is_no_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    data = [{**batch, "use_cache": True} for batch in tokens((8, 6))]
    found, *_ = both(llama(), data, monkeypatch, exclude="lm_head")
    assert not any("replayed" in note for note in found.notes)


def test_encoder_and_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """The decoder's blocks are given what the pruned encoder says."""
    pytest.importorskip("transformers")
    from transformers import BartConfig, BartModel

    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=50,
        d_model=16,
        encoder_layers=3,
        decoder_layers=3,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=32,
    )
    found, _, ours, theirs = both(BartModel(config), tokens((8, 6, 8), True), monkeypatch)
    assert "6 blocks replayed one by one" in found.notes
    assert ours < theirs


class Residual(nn.Module):
    """Writes into its input, as networks with pre-activation may."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.act = nn.ReLU(inplace=True)
        self.one = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.two = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(x)
        out: torch.Tensor = self.two(self.act(self.norm(self.one(x))))
        out += x
        return out


class ResNet(nn.Module):
    def __init__(self, blocks: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, 8, 3, padding=1)
        self.stage1 = nn.Sequential(*[Residual(8) for _ in range(blocks)])
        self.down = nn.Conv2d(8, 16, 3, stride=2)
        self.stage2 = nn.Sequential(*[Residual(16) for _ in range(2)])
        self.head = nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stage2(self.down(self.stage1(self.stem(x))))
        return self.head(x.mean((2, 3)))


def images(batches: int = 3) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(2)
    return [torch.randn(4, 4, 6, 6, generator=random) for _ in range(batches)]


def test_stages_of_a_residual_network(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    found, _, ours, theirs = both(ResNet(), images(), monkeypatch)
    assert "6 blocks replayed one by one" in found.notes
    assert ours < theirs
    names = [layer.name for layer in found.layers]
    assert names.index("stage1.3.two") < names.index("down") < names.index("stage2.0.one")


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(torch.tanh(self.one(x)))


class Blocks(nn.Module):
    """Blocks of two layers, called in a way that a subclass chooses."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Pair() for _ in range(5)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Rescaled(Blocks):
    """Not the very output of the block before."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x) * 0.5
        return x


class InPlace(Blocks):
    """The output of the block before, but changed meanwhile."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
            x += 1
        return x


class Seldom(Blocks):
    """The same for some batches only, of which the first is none."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
            if len(x) > 17:
                x += 1
        return x


class Surrounded(Blocks):
    """What a block computes depends on a setting of the model around it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x)


class Twice(Blocks):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(super().forward(x))


class Backwards(Blocks):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in reversed(self.blocks):
            x = block(x)
        return x


class Outside(Blocks):
    """A layer of a block is called by the model, too."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(self.blocks[2].one(x))


class Deciding(Blocks):
    """The model looks at numbers between blocks."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
            if x.abs().max() > 1e6:
                break
        return x


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(16, 16), nn.Linear(16, 16)
        self.left: dict[str, torch.Tensor] = {}

    def forward(self, x: torch.Tensor, by: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out = self.two(torch.tanh(self.one(x))) * by
        return out, out.std()


class Conditioned(nn.Module):
    """Each block is given something that an earlier one made."""

    def __init__(self, derived: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Scaled() for _ in range(4)])
        self.derived = derived

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        by = torch.ones(())
        for block in self.blocks:
            x, by = block(x, by=by)
            if self.derived:
                by = (by + 1).sqrt()[None]
        return x


class Leaving(nn.Module):
    """A block leaves something behind for the next one, where no argument shows it."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Reading(self) for _ in range(4)])
        self.__dict__["left"] = torch.zeros(())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.__dict__["left"] = torch.zeros(())
        for block in self.blocks:
            x = block(x)
        return x


class Reading(nn.Module):
    def __init__(self, board: nn.Module) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(16, 16), nn.Linear(16, 16)
        self.__dict__["board"] = board

    def __deepcopy__(self, memo: dict[int, Any]) -> Reading:
        copied = Reading(copy.deepcopy(self.__dict__["board"], memo))
        copied.load_state_dict(self.state_dict())
        return copied

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        board = self.__dict__["board"].__dict__
        out = self.two(torch.tanh(self.one(x))) + board["left"]
        board["left"] = out.mean()
        return out


def rows(batches: int = 3) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(3)
    return [torch.randn(16 + n, 16, generator=random) for n in range(batches)]


@pytest.mark.parametrize(
    "kind", [Rescaled, InPlace, Seldom, Surrounded, Twice, Backwards, Outside, Deciding]
)
def test_no_chain(kind: type[Blocks], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    found, *_ = both(kind(), rows(), monkeypatch)
    assert not found.notes


def test_a_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    found, _, ours, theirs = both(Blocks(), rows(), monkeypatch)
    assert "5 blocks replayed one by one" in found.notes
    assert ours < 0.7 * theirs


@pytest.mark.parametrize("derived", [False, True])
def test_an_argument_from_an_earlier_block(derived: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    found, *_ = both(Conditioned(derived), rows(), monkeypatch)
    assert not found.notes


def test_something_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = Leaving()
    found, *_ = both(model, rows(), monkeypatch)
    assert not found.notes


def test_the_keyword_of_the_hidden_state(monkeypatch: pytest.MonkeyPatch) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([Scaled() for _ in range(3)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            by = torch.full((), 0.5)
            for block in self.blocks:
                x, _ = block(by=by, x=x)
            return x

    torch.manual_seed(0)
    found, *_ = both(Named(), rows(), monkeypatch)
    assert "3 blocks replayed one by one" in found.notes


def test_a_weight_that_two_blocks_share(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = Blocks()
    model.blocks[3].one.weight = model.blocks[1].one.weight
    found, model, *_ = both(model, rows(), monkeypatch)
    assert "5 blocks replayed one by one" in found.notes
    assert any("shares the weight" in layer.note for layer in found.layers)


class Gated(nn.Module):
    """Has a layer that the first batch does not reach."""

    def __init__(self) -> None:
        super().__init__()
        self.always, self.rare = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.always(x))
        return self.rare(x) + x if len(x) > 16 else x


def test_layers_that_only_a_later_batch_reaches(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are pruned after the blocks behind them, whose kept inputs are then out of date."""
    torch.manual_seed(0)
    model = nn.Sequential(*[Gated() for _ in range(3)])
    found, *_ = both(model, rows(), monkeypatch)
    assert "3 blocks replayed one by one" in found.notes
    assert [layer.name for layer in found.layers][-1] == "2.rare"


def test_kept_inputs_are_out_of_date_after_a_layer_is_loaded(tmp_path: Path) -> None:
    """The last block is replayed, an earlier one read from a file, the last replayed again."""
    torch.manual_seed(0)
    dense = nn.Sequential(*[Gated() for _ in range(3)])
    wanted = copy.deepcopy(dense)
    prune_model(wanted, "2:4T", calibration=rows(), resume=tmp_path)
    for path in tmp_path.glob("*-2.*.safetensors"):
        path.unlink()
    report = prune_model(dense, "2:4T", calibration=rows(), resume=tmp_path)
    assert "4 of 6 layers were pruned by an earlier run and resumed" in report.notes
    for name, value in wanted.state_dict().items():
        assert torch.equal(dense.state_dict()[name], value), name


@pytest.mark.parametrize("where", ["looking", "capturing", "keeping", "advancing"])
def test_without_memory_for_the_kept_inputs(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Passes are from the start then, wherever memory ends: in a run of the model, or after it."""
    from transposable.prune import chain

    failures = 0

    def full(*_: Any) -> None:
        nonlocal failures
        failures += 1
        raise torch.OutOfMemoryError("CUDA out of memory")

    torch.manual_seed(0)
    model = Blocks()
    record = chain.record_blocks

    def short_of_memory(*args: Any) -> Any:
        looking = len(args[-1]) > 1
        if looking is not (where == "looking"):
            return record(*args)
        layer = next(m for m in args[0].modules() if isinstance(m, nn.Linear))
        handle = layer.register_forward_pre_hook(full)
        try:
            return record(*args)
        finally:
            handle.remove()

    if where == "keeping":
        monkeypatch.setattr(chain._Pool, "shared", full)
    elif where == "advancing":
        monkeypatch.setattr(chain._Position, "advance", full)
    else:
        monkeypatch.setattr(chain, "record_blocks", short_of_memory)
    found, *_ = both(model, rows(), monkeypatch)
    assert failures == 1
    assert found.notes == (() if where != "advancing" else ("1 blocks replayed one by one",))


def test_no_hook_and_no_mode_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

    for model in (Blocks(), Rescaled(), InPlace(), Deciding()):
        prune_model(model, "2:4T", calibration=rows())
        for module in model.modules():
            assert not module._forward_hooks
            assert not module._forward_pre_hooks
        assert not _get_current_dispatch_mode_stack()
