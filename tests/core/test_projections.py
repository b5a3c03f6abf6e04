"""Linear maps as matrices: rows times matrix are the responses, for every kind of layer that is relearned."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from deepsanitizer.repair.projections import Projection, projections


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build().eval()


CONVOLUTIONS: dict[str, dict[str, object]] = {
    "plain": {}, "no bias": {"bias": False}, "stride": {"stride": 2, "padding": 1},
    "stride and kernel by side": {"kernel_size": (3, 5), "stride": (1, 2), "padding": (2, 1)},
    "dilation": {"dilation": 2, "padding": 2}, "pointwise": {"kernel_size": 1}, "groups": {"groups": 2, "padding": 1},
    "depthwise": {"groups": 4, "out_channels": 8, "padding": 1}, "same": {"dilation": 3, "padding": "same"},
    "patches": {"kernel_size": 4, "stride": 4}, "reflect": {"padding": 1, "padding_mode": "reflect"},
    "replicate": {"padding": 2, "padding_mode": "replicate"}, "circular": {"padding": 1, "padding_mode": "circular"},
}


def check(projection: Projection, inputs: Tensor, output: Tensor, width: int, *, per_image: int = 7) -> None:
    positions = projection.positions(output, per_image, rng(3))
    assert len(positions) == len(output)
    assert all(len(set(row)) == len(row) for row in positions.tolist())
    responses = projection.responses(output, positions)
    rows = projection.rows(inputs, positions, width)
    matrix = projection.matrix()
    assert rows.shape[:2] == responses.shape[:2]
    assert matrix.shape == (projection.groups, responses.shape[2], rows.shape[2])
    torch.testing.assert_close(torch.einsum("rgi,goi->rgo", rows, matrix), responses, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_rows_of_a_convolution(kind: str) -> None:
    options: dict[str, object] = {"in_channels": 4, "out_channels": 6, "kernel_size": 3} | CONVOLUTIONS[kind]
    conv = seeded(lambda: nn.Conv2d(**options))  # type: ignore[arg-type]
    images = torch.randn(3, 4, 12, 9, generator=rng(1)).contiguous(memory_format=torch.channels_last)
    output = conv(images).detach()
    with projections(nn.Sequential(conv)) as found:
        assert [p.name for p in found] == ["0"]
        check(found[0], images, output, output.shape[-1])
        check(found[0], images, output, output.shape[-1], per_image=10_000)  # all positions


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 7), (3, 4, 7), (2, 3, 4, 7)])
def test_rows_of_a_linear_layer(shape: tuple[int, ...], bias: bool) -> None:
    linear = seeded(lambda: nn.Linear(7, 4, bias=bias))
    inputs = torch.randn(shape, generator=rng(1))
    output = linear(inputs).detach()
    with projections(nn.Sequential(linear)) as found:
        check(found[0], inputs, output, output.shape[-1])


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_a_written_matrix_is_read_back_and_acts(kind: str) -> None:
    options: dict[str, object] = {"in_channels": 4, "out_channels": 6, "kernel_size": 3} | CONVOLUTIONS[kind]
    conv = seeded(lambda: nn.Conv2d(**options))  # type: ignore[arg-type]
    images = torch.randn(3, 4, 12, 9, generator=rng(1))
    before = conv(images).detach()
    with projections(nn.Sequential(conv)) as found:
        matrix = found[0].matrix()
        found[0].write(2 * matrix)
        assert found[0].matrix().equal(2 * matrix)
        torch.testing.assert_close(conv(images), 2 * before)
        found[0].write(matrix)
        assert conv(images).equal(before)


def test_matrices_are_copies() -> None:
    linear = seeded(lambda: nn.Linear(3, 2))
    assert isinstance(linear, nn.Linear)
    before = linear.weight.detach().clone()
    with projections(linear) as found:
        found[0].matrix().zero_()
    assert linear.weight.equal(before)


class Attention(nn.Module):
    """Self-attention in a network of its own; `how` names what is unusual about it."""

    def __init__(self, **options: object) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, **options)

    def forward(self, x: Tensor) -> Tensor:
        told: Tensor = self.attention(x, x, x, need_weights=False)[0]
        return told


def transformer(*, norm_first: bool = False, layers: int = 1) -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=norm_first)
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False) if layers > 1 else layer


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "attention": lambda: Attention(batch_first=True), "attention without bias": lambda: Attention(
        batch_first=True, bias=False), "encoder layer": transformer,
    "encoder layer, norm first": lambda: transformer(norm_first=True), "encoder": lambda: transformer(layers=2),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_opened_attention_computes_the_same_and_is_closed_again(kind: str) -> None:
    network = seeded(NETWORKS[kind])
    tokens = torch.randn(3, 5, 8, generator=rng(1))
    attentions = [m for m in network.modules() if isinstance(m, nn.MultiheadAttention)]
    with torch.no_grad():
        expected = network(tokens)
        with projections(network) as found:
            torch.testing.assert_close(network(tokens), expected, atol=1e-5, rtol=1e-5)
            assert sum(p.name.endswith(".in_proj") for p in found) == len(attentions)
            assert sum(p.name.endswith(".out_proj") for p in found) == len(attentions)
            assert all("forward" in m.__dict__ for m in attentions)
        assert network(tokens).equal(expected)
    assert not any("forward" in m.__dict__ for m in attentions)


@pytest.mark.parametrize("kind", NETWORKS)
def test_every_projection_is_called_alone_and_matches_its_rows(kind: str) -> None:
    """One hook at a time and without gradients, as the repair does it."""
    network = seeded(NETWORKS[kind])
    tokens = torch.randn(3, 5, 8, generator=rng(1))
    with torch.no_grad(), projections(network) as found:
        for projection in found:
            seen: list[tuple[Tensor, Tensor]] = []
            hook = projection.module.register_forward_hook(lambda m, i, o: seen.append((i[0], o)))  # noqa: B023
            network(tokens)
            hook.remove()
            assert len(seen) == 1, projection.name
            check(projection, seen[0][0], seen[0][1], seen[0][1].shape[-1])


def test_attention_is_closed_after_an_error() -> None:
    network = seeded(NETWORKS["attention"])
    fast = torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(ZeroDivisionError), projections(network):
        raise ZeroDivisionError
    assert "forward" not in network.attention.__dict__
    assert torch.backends.mha.get_fastpath_enabled() == fast


@pytest.mark.parametrize("options", [{"kdim": 4}, {"add_bias_kv": True}, {"add_zero_attn": True}])
def test_unusual_attention_is_left_alone(options: dict[str, object]) -> None:
    with projections(seeded(lambda: Attention(batch_first=True, **options))) as found:
        assert found == []


def test_masked_and_crossed_attention_computes_as_ever() -> None:
    attention = seeded(lambda: nn.MultiheadAttention(8, 2, batch_first=True))
    x, y = torch.randn(2, 3, 5, 8, generator=rng(1))
    mask = torch.ones(5, 5).triu(1).bool()
    calls: list[Callable[[], Tensor]] = [
        lambda: attention(x, x, x, attn_mask=mask)[0], lambda: attention(x, y, y)[0],
        lambda: attention(x, x, x, key_padding_mask=torch.arange(5).expand(3, 5) > 3)[0]]
    with torch.no_grad():
        expected = [call() for call in calls]
        with projections(attention):
            for call, same in zip(calls, expected, strict=True):
                torch.testing.assert_close(call(), same)
