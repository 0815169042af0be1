"""Key and value heads turned towards each other before they become one: grouped-query attention by low rank.

Shapes: structure.py; and G groups of n neighbouring KV heads, c = d / 2 planes of a head. What attention computes does
not change when a key head and the queries that read it are turned and scaled together, or a value head and the output
weights that read it. Pooling after the best such turn keeps far more than the mean does. To align heads before merging
is from 2412.20677, which turns by orthogonal maps and learns what to drop; the closed form here is ours:

keys    Rotary embedding (2104.09864) turns each plane (j, j + d/2) of a head, a complex number z, by an angle, and so
        commutes with a complex factor. In each plane keys are z_a ~ f_a z, with z and the factors f_a that make
        sum_a w_a E|z_a - f_a z|^2 least: the first principal component of sqrt(w_a) z_a. Queries of head a are
        multiplied by conj(f_a). w_a = sum_h E|q_h|^2 E||W_o[:, h] o_h||^2 over the query heads h of a, q_h in it.
values  v_a ~ B_a v, with v of d channels and the maps B_a (d, d) that make sum_a E||M_a (v_a - B_a v)||^2 least,
        M_a^2 = sum_h W_o[:, h]^T W_o[:, h]: the first d principal components of the stacked M_a v_a. W_o[:, h] becomes
        W_o[:, h] B_a.

Exact where the heads of a group span one key in each plane and d values. A norm of the keys (Qwen3) stands between
weights and planes: there keys become their weighted mean, and values are aligned.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from distill.model.calibration import Batch
from distill.model.cuts import State
from distill.model.importance import Progress, hooked, silent
from distill.model.pooling import group_shares
from distill.model.selection import kv_weights_of_layer
from distill.model.structure import Structure, present_layers, structure_of

_LEAST_WEIGHT = 1e-6  # of a plane's largest, so that no factor is without bound


@dataclass(frozen=True)
class HeadMoments:
    """Of one layer, sums over calibration tokens of what its heads have in common, on the model's device.

    keys_Gcnn: z_a conj(z_b) in each plane (complex); values_Gmm: v v^T of the group's stacked value heads, m = n d;
    queries_Hc: |q|^2 in each plane. In float32: m^2 numbers a group are the largest thing that is kept.
    """

    keys_Gcnn: Tensor
    values_Gmm: Tensor
    queries_Hc: Tensor


@torch.no_grad()
def measure_heads(
    model: PreTrainedModel, batches: Sequence[Batch], kv_heads: int, progress: Progress = silent
) -> list[HeadMoments]:
    """The moments of every present layer for groups that become `kv_heads` heads, from one pass over the batches."""
    structure, layers = structure_of(model), present_layers(model)
    n, d = structure.kv_heads // kv_heads, structure.head_size
    moments = [
        HeadMoments(
            torch.zeros(kv_heads, d // 2, n, n, dtype=torch.complex64, device=model.device),
            torch.zeros(kv_heads, n * d, n * d, device=model.device),
            torch.zeros(structure.heads, d // 2, device=model.device),
        )
        for _ in layers
    ]
    mask = torch.ones(0, 0, dtype=torch.bool)

    def keys(index: int, out_BTx: Tensor) -> None:
        planes_Gcnt = _planes(out_BTx[mask].float().T, structure.kv_heads).unflatten(0, (kv_heads, n)).transpose(1, 2)
        moments[index].keys_Gcnn.add_(planes_Gcnt @ planes_Gcnt.mH)

    def values(index: int, out_BTx: Tensor) -> None:
        stacked_Gmt = out_BTx[mask].float().T.unflatten(0, (kv_heads, n * d))
        moments[index].values_Gmm.add_(stacked_Gmt @ stacked_Gmt.mT)

    def queries(index: int, out_BTx: Tensor) -> None:
        moments[index].queries_Hc.add_(_planes(out_BTx[mask].float().T, structure.heads).abs().square().sum(-1))

    def hooks() -> Iterator[torch.utils.hooks.RemovableHandle]:
        for index, layer in enumerate(layers):
            attention = layer.self_attn
            for linear, note in ((attention.k_proj, keys), (attention.v_proj, values), (attention.q_proj, queries)):
                yield linear.register_forward_hook(lambda _, args, out, i=index, to=note: to(i, out))

    with hooked(hooks()):
        for index, batch in enumerate(batches):
            mask = batch.mask.to(model.device)
            model.base_model(input_ids=batch.input_ids.to(model.device), use_cache=False)
            progress("heads beside each other", index + 1, len(batches))
    return moments


def pool_aligned(
    state: State,
    moments: Sequence[HeadMoments],
    queries_LH: Tensor,
    effects_LH: Tensor,
    structure: Structure,
    kv_heads: int,
) -> State:
    """The state dict with `kv_heads` key and value heads a layer, aligned; `queries_LH`, `effects_LH` as in Importance.

    Sums are taken in float64.
    """
    new = dict(state)
    for index, found in enumerate(moments):
        prefix = f"model.layers.{index}.self_attn."
        rows = {part: _augmented(state, f"{prefix}{part}_proj") for part in "qkv"}
        output_DHd = state[f"{prefix}o_proj.weight"].double().unflatten(1, (structure.heads, -1))
        rows["v"], output_DHd = _pooled_values(rows["v"], output_DHd, found.values_Gmm.double().cpu(), structure)
        if f"{prefix}k_norm.weight" in state:
            weights = kv_weights_of_layer(queries_LH[index], effects_LH[index], structure)
            shares_Gn = group_shares(weights, kv_heads)
            keys_Gndx = rows["k"].unflatten(0, (*shares_Gn.shape, -1))
            rows["k"] = (shares_Gn[:, :, None, None] * keys_Gndx).sum(1).flatten(0, 1)
        else:
            weights_Hc = found.queries_Hc.double().cpu() * effects_LH[index][:, None]
            grams = found.keys_Gcnn.to(device="cpu", dtype=torch.complex128)
            rows["q"], rows["k"] = _pooled_keys(rows["q"], rows["k"], grams, weights_Hc, structure)
        new[f"{prefix}o_proj.weight"] = output_DHd.flatten(1).to(state[f"{prefix}o_proj.weight"].dtype).contiguous()
        for part, tensor in rows.items():
            _put(new, f"{prefix}{part}_proj", tensor)
    return new


def _pooled_keys(
    queries_Rx: Tensor, keys_Rx: Tensor, grams_Gcnn: Tensor, weights_Hc: Tensor, structure: Structure
) -> tuple[Tensor, Tensor]:
    """Rows of q_proj turned, and rows of k_proj pooled; x are the model's channels and the bias."""
    groups, _, n, _ = grams_Gcnn.shape
    per_head_Kc = weights_Hc.unflatten(0, (structure.kv_heads, -1)).sum(1)
    roots_Gcn = per_head_Kc.unflatten(0, (groups, n)).transpose(1, 2)
    roots_Gcn = roots_Gcn.clamp_min(torch.finfo(torch.float64).tiny)
    roots_Gcn = torch.maximum(roots_Gcn, _LEAST_WEIGHT * roots_Gcn.amax(-1, keepdim=True)).sqrt()
    first_Gcn = torch.linalg.eigh(grams_Gcnn * roots_Gcn[..., :, None] * roots_Gcn[..., None, :]).eigenvectors[..., -1]
    phase_Gc1 = first_Gcn.sum(-1, keepdim=True).conj()
    first_Gcn = first_Gcn * torch.where(phase_Gc1.abs() > 0, phase_Gc1 / phase_Gc1.abs(), 1)
    sums_Gcn = first_Gcn.conj() * roots_Gcn  # z = sum_a of these times z_a
    pooled_Gc = torch.einsum("gca,gcab,gcb->gc", sums_Gcn, grams_Gcnn, sums_Gcn.conj()).real
    mean_Gc = grams_Gcnn.diagonal(dim1=-2, dim2=-1).real.mean(-1)
    scale_Gc1 = torch.where(pooled_Gc > 0, (mean_Gc / pooled_Gc).sqrt(), 1.0)[..., None]
    planes_Gncx = _planes(keys_Rx, structure.kv_heads).unflatten(0, (groups, n))
    keys_Gcx = torch.einsum("gca,gacx->gcx", sums_Gcn * scale_Gc1, planes_Gncx)
    factors_Kc = (first_Gcn / roots_Gcn / scale_Gc1).transpose(1, 2).flatten(0, 1)
    factors_Hc = factors_Kc.conj().repeat_interleave(structure.queries_per_kv_head, 0)
    return _rows(_planes(queries_Rx, structure.heads) * factors_Hc[..., None]), _rows(keys_Gcx)


def _pooled_values(
    values_Rx: Tensor, output_DHd: Tensor, moments_Gmm: Tensor, structure: Structure
) -> tuple[Tensor, Tensor]:
    """Rows of v_proj pooled, and the columns of o_proj (D, H, d) that read them."""
    groups, d, per = len(moments_Gmm), structure.head_size, structure.queries_per_kv_head
    n = structure.kv_heads // groups
    values_Kdx = values_Rx.unflatten(0, (structure.kv_heads, d))
    squares_Kdd = torch.einsum("zkhi,zkhj->kij", *[output_DHd.unflatten(1, (structure.kv_heads, per))] * 2)
    levels_Kd, turns_Kdd = torch.linalg.eigh(squares_Kdd)
    roots_Kd = levels_Kd.clamp_min(0).sqrt()
    there = roots_Kd > 1e-6 * roots_Kd.amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    inverse_Kd = torch.where(there, 1 / roots_Kd, 0.0)
    maps_Kdd = (turns_Kdd * roots_Kd[:, None, :]) @ turns_Kdd.mT
    back_Kdd = (turns_Kdd * inverse_Kd[:, None, :]) @ turns_Kdd.mT
    pooled, output = [], output_DHd.clone()
    for group in range(groups):
        heads = range(group * n, (group + 1) * n)
        whole_mm = torch.block_diag(*(maps_Kdd[head] for head in heads))
        energies_m, parts_mm = torch.linalg.eigh(whole_mm @ moments_Gmm[group] @ whole_mm)
        parts_ndd = parts_mm[:, -d:].unflatten(0, (n, d))
        kept, mean = energies_m[-d:].sum(), moments_Gmm[group].diagonal().sum() / n
        scale = (mean / kept).sqrt() if kept > 0 else torch.ones(())
        pooled.append(scale * sum(parts_ndd[a].T @ maps_Kdd[head] @ values_Kdx[head] for a, head in enumerate(heads)))
        for a, head in enumerate(heads):
            readers = slice(head * per, (head + 1) * per)
            output[:, readers] = output_DHd[:, readers] @ (back_Kdd[head] @ parts_ndd[a] / scale)
    return torch.cat(pooled), output


def _planes(rows_Rx: Tensor, heads: int) -> Tensor:
    """(heads d, x) to complex (heads, c, x): channel j of a head is the real part of plane j, j + d/2 the imaginary."""
    real, imaginary = rows_Rx.unflatten(0, (heads, 2, -1)).unbind(1)
    return torch.complex(real, imaginary)


def _rows(planes_Ncx: Tensor) -> Tensor:
    return torch.stack([planes_Ncx.real, planes_Ncx.imag], 1).flatten(0, 2)


def _augmented(state: State, name: str) -> Tensor:
    """Weight, and bias as one more column, in float64."""
    weight, bias = state[f"{name}.weight"].double(), state.get(f"{name}.bias")
    return weight if bias is None else torch.cat([weight, bias.double()[:, None]], 1)


def _put(state: State, name: str, rows_Rx: Tensor) -> None:
    weight, bias = state[f"{name}.weight"], state.get(f"{name}.bias")
    state[f"{name}.weight"] = rows_Rx[:, : weight.shape[1]].to(weight.dtype).contiguous()
    if bias is not None:
        state[f"{name}.bias"] = rows_Rx[:, -1].to(bias.dtype).contiguous()
