"""Plant faults one at a time in a copy of the tree, and require that the tests of the file turn red for each.

Run by `make mutate`, or `python tests/mutate.py [part of a name ...]` with the test dependencies and the build tools
installed. A fault whose text is no longer found, or found twice, is an error: it must follow the code.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Fault:
    """`old` becomes `new` in `path`; then one of `tests` must fail."""

    name: str
    path: str
    old: str
    new: str
    tests: str


ASSIGN = "csrc/cpu/assign.cpp"
PREPARE = "csrc/cpu/assign_prepare.h"
NARROW = "csrc/cpu/assign_narrow.h"
WIDE = "csrc/cpu/assign_wide.h"
BLOCK = "csrc/cpu/assign_block.h"
BYTES = "csrc/cpu/assign_bytes.h"
TILES = "csrc/cpu/assign_tiles.h"
FEW = "csrc/cpu/assign_few.h"
GRID = "csrc/cpu/assign_grid.h"
ACCUMULATE = "csrc/cpu/accumulate.cpp"
ROWS = "csrc/cpu/rows.h"
D64 = "csrc/cpu/d64.h"
EXACT_SUM = "csrc/cpu/exact_sum.h"
CSR = "csrc/cpu/csr.cpp"
CSR_ASSIGN = "csrc/cpu/csr_assign.h"
SPLIT = "csrc/cpu/split_empty.h"
LLOYD = "csrc/cpu/lloyd_run.h"
POOL = "csrc/cpu/batch_norm_relu_pool.cpp"
WINOGRAD = "csrc/cpu/winograd_conv2d.cpp"
CUDA_ASSIGN = "csrc/cuda/assign.cuh"
CUDA_ROWS = "csrc/cuda/assign_prepare.cu"
CUDA_RECHECK = "csrc/cuda/assign_recheck.cu"
SM80 = "csrc/cuda/assign_sm80.cu"
SM90 = "csrc/cuda/assign_sm90.cu"
EMULATED = "tests/emulator/test_assign.py"

FAULTS = [
    Fault("GPU: place not in the bound", CUDA_ASSIGN, "kW = 1.05 / (1 << 18)", "kW = 0.1 / (1 << 18)", EMULATED),
    Fault("GPU: rest of rounding forgotten", CUDA_ROWS, "bounds.residual / kE", "0.0", EMULATED),
    Fault("GPU: second of the recheck on ties", CUDA_RECHECK, "second < first)", "second > first)", EMULATED),
    Fault("GPU: third score forgotten", CUDA_ASSIGN, "double(v3) > limit", "true", EMULATED),
    Fault("GPU: slot freed early", SM90, "wgmma_wait<1>();", "wgmma_wait<8>();", EMULATED),
    Fault(
        "GPU: rows overwritten early",
        SM90,
        "mbarrier_wait(&barriers.rows_empty[block], rows_parity ^ 1);",
        "",
        EMULATED,
    ),
    Fault("GPU: copies not waited for", SM80, "cp_async_wait<2>();", "cp_async_wait<3>();", EMULATED),
    Fault(
        "GPU: roundings of k-means++ forgotten",
        "csrc/cuda/kmeans_plusplus.cu",
        "1.0 - double(p.d + 5) * 0x1p-24",
        "1.0",
        "tests/emulator/test_kmeans_plusplus.py",
    ),
    Fault(
        "GPU: gradients of Sobel values outside the image",
        "csrc/cuda/sobel_conv2d_backward_image.cu",
        "if (y + dy < 0 || y + dy >= s.height || x + dx < 0 || x + dx >= s.width) continue;",
        "",
        "tests/emulator/test_sobel_conv2d.py -k image_gradients",
    ),
    Fault("tie flipped", PREPARE, "index < best->index", "index > best->index", "tests/test_assign.py"),
    Fault(
        "recheck dropped",
        BLOCK,
        "if (count > 1) {",
        "if (count > 100) {",
        "tests/test_assign.py",
    ),
    Fault(
        "another order of addition decides",
        PREPARE,
        "double(d + 4) * 0x1p-50",
        "0.0",
        "tests/test_assign.py -k order_of_addition",
    ),
    Fault(
        "second candidate of a lane forgotten",
        BLOCK,
        "if (mask_at_most(low.second, broadcast(limit)) == 0) {",
        "if (low.second[0] == low.second[0]) {",
        "tests/test_assign.py",
    ),
    Fault(
        "second candidate of a row forgotten",
        NARROW,
        "if (!(low[v].second[lane] <= t)) continue;",
        "if (t == t) continue;",
        "tests/test_assign.py",
    ),
    Fault(
        "bound of the certificate dropped",
        PREPARE,
        "(2.0 * (a + norm * b)",
        "0.0 * (2.0 * (a + norm * b)",
        "tests/test_assign.py",
    ),
    Fault(
        "rounding of the rows left out of the bound",
        WIDE,
        "return (norm * (rho + 16.0 * kU) + residual",
        "return 0.0 * (norm * (rho + 16.0 * kU) + residual",
        "tests/test_assign.py",
    ),
    Fault(
        "doubles scaled in float32",
        WIDE,
        "const T scale = T(*p.scale);",
        "const T scale = T(float(*p.scale));",
        "tests/test_assign.py",
    ),
    Fault(
        "own centroid no candidate",
        BLOCK,
        "holds_own = holds_own && own.low <= limit;",
        "holds_own = false;",
        "tests/test_assign.py",
    ),
    Fault(
        "a row whose own centroid left is near",
        BLOCK,
        "double(own.most) <= before * (1.0 - epsilon)",
        "double(own.most) >= 0.0",
        "tests/test_assign.py",
    ),
    Fault(
        "a step not taken from the bounds",
        BLOCK,
        "- *reinterpret_cast<const Kept*>(p.drift);",
        "- 0.0f * *reinterpret_cast<const Kept*>(p.drift);",
        "tests/test_assign.py -k reassign",
    ),
    Fault(
        "the own centroid's step not added to its distance",
        BLOCK,
        "bounds[kOwnLane] + p.step[label]",
        "bounds[kOwnLane] + 0.0f * p.step[label]",
        "tests/test_assign.py -k reassign",
    ),
    Fault(
        "bytes of a tile in the wrong half",
        TILES,
        "_tile_stored(1, sums + 16, panel_stride)",
        "_tile_stored(1, sums, panel_stride)",
        "tests/test_assign.py -k own",
    ),
    Fault(
        "rows between tiles forgotten",
        TILES,
        "x + 16 * row_stride, row_stride);",
        "x, row_stride);",
        "tests/test_assign.py -k own",
    ),
    Fault(
        "the centroid that a row left not in the bounds",
        BLOCK,
        "*own = bound < *own ? bound : *own;",
        "*own = bound < 0.0f ? bound : *own;",
        "tests/test_assign.py -k reassign",
    ),
    Fault(
        "rounding of squares left out",
        FEW,
        "epsilon = double(epsilon_of(r.d)) + 0x1p-30",
        "epsilon = 0x1p-30",
        "tests/test_assign.py -k order_of_addition",
    ),
    Fault(
        "rows beside the grid taken for on it",
        GRID,
        "whole - v : v - whole",
        "0.0f : 0.0f",
        "tests/test_assign.py -k beside",
    ),
    Fault("the tail beside the grid", GRID, "whole = whole && v == rint(v);", "", "tests/test_assign.py -k beside"),
    Fault(
        "more units than float32 holds",
        GRID,
        "0x1p23 - 0.5 * square",
        "0x1p27 - 0.5 * square",
        "tests/test_assign.py -k units",
    ),
    Fault(
        "ties on the grid to any", GRID, "other < position ?", "other > position ?", "tests/test_assign.py -k lattices"
    ),
    Fault(
        "finer centroids on a coarse grid",
        GRID,
        "fmin(grid, lowest)",
        "fmax(grid, lowest)",
        "tests/test_assign.py -k lattices",
    ),
    Fault("neighbours saturate", BYTES, "neighbours / 126.9", "neighbours / 250.0", "tests/test_assign.py -k bytes"),
    Fault("sums wrap around", BYTES, "kLength = 178.0f", "kLength = 400.0f", "tests/test_assign.py -k bytes"),
    Fault("the offset of bytes not taken off", BYTES, "-128 * sums[0]", "0 * sums[0]", "tests/test_assign.py -k own"),
    Fault("rounding to bytes left out", BYTES, "* per * g)};", "* per * 0.0)};", "tests/test_assign.py -k own"),
    Fault("rounding of the limit left out", BYTES, "bound + rounded", "bound - rounded", "tests/test_assign.py -k own"),
    Fault(
        "too many rivals forgotten",
        BYTES,
        "if (rivals.count > kRivals) return false;",
        "if (rivals.count > kRivals) return r.labels[s.row[slot]] = r.before[s.row[slot]], true;",
        "tests/test_assign.py -k own",
    ),
    Fault(
        "rows that bytes leave are not assigned",
        BYTES,
        "i < count && i < first + most",
        "i < 0 && i < first + most",
        "tests/test_assign.py -k own",
    ),
    Fault(
        "own centroid in the bounds of its group left out",
        BYTES,
        "low[half][own_lane % kFloats] = INFINITY;",
        "low[half] = broadcast(INFINITY);",
        "tests/test_assign.py -k own",
    ),
    Fault(
        "bounds kept where there are copies",
        ASSIGN,
        "p.drift[group] = live == k && most",
        "p.drift[group] = live >= 0 && most",
        "tests/test_assign.py -k reassign",
    ),
    Fault(
        "row stride ignored",
        BLOCK,
        "return x + at * stride;",
        "return x + at * d;",
        "tests/test_assign.py",
    ),
    Fault(
        "centroid with a NaN used", PREPARE, "if (!finite_row(row, d)) return kNotFinite;", "", "tests/test_assign.py"
    ),
    Fault(
        "row with a NaN labelled",
        BLOCK,
        "} else if (!finite_row(x, r.d)) {",
        "} else if (r.d < 0) {",
        "tests/test_assign.py",
    ),
    Fault("denormals flushed", "csrc/cpu/float_env.h", "saved_ & ~0xE040u", "saved_", "tests/test_assign.py"),
    Fault(
        "D64 in another order",
        D64,
        "double acc = 0.0;\n  for (int64_t i = 0; i < d; ++i)",
        "double acc = 0.0;\n  for (int64_t i = d - 1; i >= 0; --i)",
        "tests/test_assign.py",
    ),
    Fault("lowest word dropped", ROWS, "if (kJoins) *", "if (kJoins && word > 0) *", "tests/test_accumulate.py"),
    Fault(
        "carry dropped",
        ROWS,
        "sum[(w + 1) * d + i] += up;",
        "",
        "tests/test_accumulate.py",
    ),
    Fault(
        "row of weight 0 counted",
        ACCUMULATE,
        "if (w == 0.0) continue;",
        "",
        "tests/test_accumulate.py",
    ),
    Fault("weight ignored", D64, "weight[first + r] * value : value", "value : value", "tests/test_inertia.py"),
    Fault("sign of a sum ignored", EXACT_SUM, "negative ? -1 : 1", "negative ? 1 : 1", "tests/test_inertia.py"),
    Fault(
        "sparse: rounding of the sum left out of the bound",
        CSR_ASSIGN,
        "b = (g + 8.0 * kU) * (1.0 + 16.0 * kU);",
        "b = 0.0 * g;",
        "tests/test_csr.py -k 'long_rows'",
    ),
    Fault(
        "sparse: a row taken for farther than it is",
        CSR,
        "const double bound = distance[lane] - elements",
        "const double bound = 1.1 * distance[lane] - elements",
        "tests/test_csr.py -k 'potentials'",
    ),
    Fault(
        "split skipped",
        SPLIT,
        "if (counts[empty] != 0) continue;",
        "if (counts[empty] != 0 || empty == 1) continue;",
        "tests/test_split_empty.py",
    ),
    Fault(
        "draw without the iteration",
        SPLIT,
        "uint64_t(iteration), uint64_t(empty)",
        "uint64_t(0), uint64_t(empty)",
        "tests/test_split_empty.py",
    ),
    Fault("donor keeps its count", SPLIT, "counts[donor] = count - count / 2;", "", "tests/test_split_empty.py"),
    Fault(
        "rows that leave a cluster added to it on GPUs",
        "csrc/cuda/accumulate.cu",
        "leaves ? -sum : sum",
        "leaves ? sum : sum",
        "tests/emulator/test_accumulate.py",
    ),
    Fault(
        "half a bit rounded without what lies below on GPUs",
        "csrc/cuda/fixed.cuh",
        "below = passed;",
        "below = 0;",
        "tests/emulator/test_accumulate.py",
    ),
    Fault(
        "labels one update behind",
        "dcfast/cluster/lloyd.py",
        "if ended != _LABELS:\n        run",
        "if ended == -1:\n        run",
        "tests/test_lloyd.py -k 'run_of_its_own'",
    ),
    Fault(
        "centroids where a captured graph does not look",
        "dcfast/cluster/lloyd.py",
        "torch.where(updated, new, self.centroids, out=self.centroids)",
        "self.centroids = torch.where(updated, new, self.centroids)",
        "tests/test_lloyd.py -k replayed",
    ),
    Fault(
        "labels swapped where a captured graph does not look",
        "dcfast/cluster/lloyd.py",
        '"cuda": 4}',
        '"cuda": 3}',
        "tests/test_lloyd.py -k replayed",
    ),
    Fault(
        "weights of another block",
        "dcfast/cluster/points.py",
        "else self.sample_weight[at]",
        "else self.sample_weight[: at.stop - at.start]",
        "tests/test_points.py -k 'relocation_is_the_same'",
    ),
    Fault(
        "rows counted from the rank's own",
        "dcfast/cluster/lloyd.py",
        "far[order] + points.offset",
        "far[order]",
        "tests/test_distributed.py",
    ),
    Fault(
        "mean instead of direction",
        "dcfast/cluster/lloyd.py",
        "unit(mean).to(",
        "mean.to(",
        "tests/test_spherical.py -k 'definition'",
    ),
    Fault(
        "empty clusters left empty",
        "dcfast/cluster/lloyd.py",
        'empty == "farthest"',
        'empty == "nearest"',
        "tests/test_lloyd.py -k 'run_of_its_own'",
    ),
    Fault(
        "a mean not found anew after a split",
        LLOYD,
        "w.stale[j] = w.shares[j] != w.counts[j]",
        "w.stale[j] = 0",
        "tests/test_lloyd.py -k 'definition'",
    ),
    Fault(
        "a changed centroid not packed",
        LLOYD,
        "if (w.packed[at] == j && !w.changed[j]) continue;",
        "if (w.packed[at] == j) continue;",
        "tests/test_lloyd.py -k 'definition'",
    ),
    Fault(
        "a row left in the sum that it moved from",
        LLOYD,
        "cluster, w.counted[row]);",
        "cluster, -1);",
        "tests/test_lloyd.py -k 'definition'",
    ),
    Fault(
        "a row drawn twice",
        "csrc/cpu/draw_rows.cpp",
        "if (left[low] == 0.0) continue;",
        "",
        "tests/test_draw_rows.py",
    ),
    Fault(
        "a problem seeded from another's rows",
        "csrc/cpu/kmeans_plusplus.cpp",
        "x + start * row_stride",
        "x",
        "tests/test_kmeans_plusplus.py -k 'batch'",
    ),
    Fault(
        "faiss's walk gives up later",
        "dcfast/faiss/clustering.py",
        "for _ in range(10)",
        "for _ in range(11)",
        "tests/test_faiss.py -k 'splits'",
    ),
    Fault(
        "faiss's permutation with another modulus",
        "dcfast/faiss/starts.py",
        "% (n - steps)",
        "% n",
        "tests/test_faiss.py -k 'starts_from'",
    ),
    Fault(
        "neighbours not proved",
        "dcfast/cluster/neighbours.py",
        "return nearest[:, :k], values[:, -1] > self._limit(a, distances[:, k - 1])",
        "return nearest[:, :k], values[:, -1] < torch.inf",
        "tests/test_neighbours.py",
    ),
    Fault(
        "neighbours proved without the rounding of their products",
        "dcfast/cluster/neighbours.py",
        "kappa = (vectors.shape[1] + 8)",
        "kappa = 0 * (vectors.shape[1] + 8)",
        "tests/test_neighbours.py -k definition",
    ),
    Fault(
        "neighbours proved without the rounding of distances",
        "dcfast/cluster/neighbours.py",
        "(d + 8) * (2.0**-51",
        "0 * (2.0**-51",
        "tests/test_neighbours.py -k definition",
    ),
    Fault(
        "points follow down as well as up",
        "dcfast/cluster/pic.py",
        "gain = weight * rise",
        "gain = weight * np.abs(rise)",
        "tests/test_pic.py -k definition",
    ),
    Fault(
        "a single point joins the nearest of all",
        "dcfast/cluster/pic.py",
        "labels[~single][ops.assign",
        "labels[ops.assign",
        "tests/test_pic.py -k definition",
    ),
    Fault(
        "the head's gradient takes the mean of one row of each pair",
        "dcfast/cluster/pair_loss.py",
        "alpha=0.5",
        "alpha=1.0",
        "tests/test_head.py -k gradient",
    ),
    Fault(
        "the head forgets the centre that it was trained around",
        "dcfast/cluster/head.py",
        "biases[best] - weight.to(centre) @ centre",
        "biases[best]",
        "tests/test_head.py -k 'separate or kept'",
    ),
    Fault(
        "all heads have the first exponent",
        "dcfast/cluster/head.py",
        "cycle(betas)",
        "cycle(betas[:1])",
        "tests/test_head.py -k little",
    ),
    Fault(
        "the head of the largest loss is kept",
        "dcfast/cluster/head.py",
        "losses.argmin()",
        "losses.argmax()",
        "tests/test_head.py -k 'separate or kept'",
    ),
    Fault(
        "the head's outputs count clusters that no image is in",
        "dcfast/deepcluster/partition.py",
        "name: value[used] for",
        "name: value for",
        "tests/deepcluster/test_embed.py -k head",
    ),
    Fault(
        "a batch forgets what its centroids have seen",
        "dcfast/ops/minibatch_step/step.py",
        "centroids.double() * seen[:, None] + added",
        "centroids.double() * (seen[:, None] > 0) + added",
        "tests/test_minibatch_step.py -k 'definition'",
    ),
    Fault(
        "a batch weighs as many as its rows",
        "csrc/cpu/minibatch_step.cpp",
        "add_exactly(weight[row],",
        "add_exactly(weight[row] > 0.0 ? 1.0 : 0.0,",
        "tests/test_minibatch_step.py -k 'definition'",
    ),
    Fault(
        "draws on the edges go to the wrong row",
        "dcfast/cluster/minibatch.py",
        "off = np.flatnonzero((at < edges[rows]) | (at >= edges[rows + 1]))",
        "off = np.flatnonzero(at < edges[rows])",
        "tests/test_minibatch.py -k 'edges'",
    ),
    Fault(
        "batches drawn without weights",
        "dcfast/cluster/minibatch.py",
        "np.cumsum(share / share.sum(), out=edges[1:])",
        "np.cumsum(np.full(n, 1 / n), out=edges[1:])",
        "tests/test_minibatch.py -k 'choice'",
    ),
    Fault(
        "the cluster of least inertia split",
        "dcfast/cluster/bisecting.py",
        "key=lambda i: leaves[i].score",
        "key=lambda i: -leaves[i].score",
        "tests/test_bisecting.py -k 'agrees'",
    ),
    Fault(
        "guard of zero eigenvalues dropped",
        "dcfast/cluster/whiten.py",
        "variance > floor",
        "variance > 0",
        "tests/test_whiten.py -k 'without_variance'",
    ),
    Fault(
        "draws the same in every epoch",
        "dcfast/deepcluster/keyed.py",
        "counter=np.array([0, 0, position, epoch]",
        "counter=np.array([0, 0, position, 0]",
        "tests/deepcluster/test_sampler.py",
    ),
    Fault(
        "clusterings settled before anything is learnt",
        "dcfast/deepcluster/metrics.py",
        "last >= min(agreement) + _RISE and ",
        "",
        "tests/deepcluster/test_clustering.py -k 'levelled_off'",
    ),
    Fault(
        "chance knows the classes",
        "dcfast/deepcluster/space.py",
        "draws.permutation(classes)",
        "classes",
        "tests/deepcluster/test_scout.py -k chance",
    ),
    Fault(
        "another start of k-means is scouted than trained on",
        "dcfast/deepcluster/scout.py",
        "for epoch in (0, 1)",
        "for epoch in (1, 0)",
        "tests/deepcluster/test_scout.py -k begins",
    ),
    Fault(
        "a few labels are those of the largest classes",
        "dcfast/deepcluster/space.py",
        "(rank + 0.5) / sizes[labels[known]]",
        "-sizes[labels[known]]",
        "tests/deepcluster/test_scout.py -k share",
    ),
    Fault(
        "noise is trained on",
        "dcfast/deepcluster/sampler.py",
        "[len(assignments) - sizes.sum() :]",
        "[: sizes.sum()]",
        "tests/deepcluster/test_clustering.py -k 'without_noise'",
    ),
    Fault(
        "grey of a cache by equal weights",
        "dcfast/deepcluster/cache.py",
        "_GREY = (1 / np.array(IMAGENET_STD) / (1 / np.array(IMAGENET_STD)).sum())",
        "_GREY = (np.ones(3) / 3)",
        "tests/deepcluster/test_cache.py -k grey_cache",
    ),
    Fault(
        "parts of a batch weigh the same",
        "dcfast/deepcluster/stages.py",
        " * (weight[aim].sum() / weight[batch].sum() * counts)",
        " / config.accumulate",
        "tests/deepcluster/test_scale.py -k whole_batch",
    ),
    Fault(
        "a process without an image counts",
        "dcfast/deepcluster/stages.py",
        "else (batch[:2], 0)",
        "else (batch[:2], ranks.size)",
        "tests/deepcluster/test_torchrun.py -k gradients",
    ),
    Fault(
        "sums of PCA by the rank's own tree",
        "dcfast/cluster/whiten.py",
        "self.index % 2 == 0 and ",
        "",
        "tests/test_distributed.py -k components",
    ),
    Fault(
        "an interrupted epoch forgets its loss",
        "dcfast/deepcluster/stages.py",
        "total += total_before",
        "total += 0",
        "tests/deepcluster/test_trainer.py -k next_step",
    ),
    Fault(
        "wide heads of a huge transformer forgotten",
        "dcfast/deepcluster/vit.py",
        "_SIXTEEN_HEADS = (1280, 1408, 1664)",
        "_SIXTEEN_HEADS = (1408, 1664)",
        "tests/deepcluster/test_vit.py -k heads",
    ),
    Fault(
        "registers before the class token",
        "dcfast/deepcluster/vit.py",
        "tokens.insert(1, self.register_tokens)",
        "tokens.insert(0, self.register_tokens)",
        "tests/deepcluster/test_vit.py -k encoder",
    ),
    Fault(
        "positions of a grid transposed",
        "dcfast/deepcluster/vit.py",
        "permute(0, 3, 1, 2)\n            antialias",
        "permute(0, 3, 2, 1)\n            antialias",
        "tests/deepcluster/test_vit.py -k encoder",
    ),
    Fault(
        "half an embedding left behind",
        "dcfast/deepcluster/embedding.py",
        "                folder.rmdir()",
        "                pass",
        "tests/deepcluster/test_embed.py -k interruption",
    ),
    Fault(
        "features that are not finite written",
        "dcfast/deepcluster/embed.py",
        "if not np.isfinite(rows).all():",
        "if False:",
        "tests/deepcluster/test_embed.py -k not_finite",
    ),
    Fault(
        "crops enlarged without interpolation",
        "dcfast/deepcluster/regions.py",
        "(1 / scale.clamp(min=1))",
        "(1 / scale)",
        "tests/deepcluster/test_regions.py",
    ),
    Fault(
        "D64 fused on GPUs",
        "dcfast/ops/assign/triton.py",
        '_PAIR_OPTIONS = {"num_warps": 1, "enable_fp_fusion": False}',
        '_PAIR_OPTIONS = {"num_warps": 1}',
        "tests/offline/test_triton.py -k 'assign and d64'",
    ),
    Fault("pooling: NaN lost", POOL, "(v > best) | (v != v)", "v > best", "tests/test_batch_norm_relu_pool.py"),
    Fault(
        "pooling: the batch's moments held constant",
        "dcfast/ops/batch_norm_relu_pool/native.py",
        "share = float(of_batch)",
        "share = 0.0",
        "tests/test_batch_norm_relu_pool.py",
    ),
    Fault(
        "pooling: overlapping windows overwrite",
        POOL,
        "once ? share : V::load(to) + share",
        "share",
        "tests/test_batch_norm_relu_pool.py",
    ),
    Fault(
        "winograd: past a row's end lies the next row",
        WINOGRAD,
        "y < z.height && x >= 0 && x < z.width",
        "y < z.height && x >= 0",
        "tests/test_winograd_conv2d.py",
    ),
    Fault(
        "winograd: a coefficient in another place",
        WINOGRAD,
        "fmadd(minus_sum, d[3], d[5])",
        "fmadd(minus_sum, d[3], d[4])",
        "tests/test_winograd_conv2d.py",
    ),
    Fault(
        "winograd: the last chunk works on what the one before left",
        WINOGRAD,
        "products<T, true>(z.in_channels, last - first,",
        "products<T, true>(z.in_channels, z.chunk,",
        "tests/test_winograd_conv2d.py",
    ),
    Fault(
        "winograd: the usual points, of three times the error",
        WINOGRAD,
        "kA = 0.625, kB = 1.5",
        "kA = 1.0, kB = 2.0",
        "tests/test_winograd_conv2d.py",
    ),
    Fault(
        "winograd: filters not turned round for the gradient",
        "dcfast/ops/winograd_conv2d/__init__.py",
        "(grad, weight.flip(2, 3).transpose(0, 1)",
        "(grad, weight.transpose(0, 1)",
        "tests/test_winograd_conv2d.py",
    ),
    Fault(
        "lloyd: stale centroids are packed when more are distinct",
        LLOYD,
        "for (int64_t at = live; at < z.k; ++at) w.packed[at] = -1;",
        "for (int64_t at = live; at < whole_tiles(live) && at < z.k; ++at) w.packed[at] = -1;",
        "tests/test_lloyd.py -k coincide",
    ),
    Fault(
        "lloyd: rows that are not finite do not count in the variance",
        LLOYD,
        "double(q.n * z.d)",
        "double(count * z.d)",
        "tests/test_lloyd.py -k relative",
    ),
    Fault(
        "lloyd: what nothing is left for goes to the lightest",
        LLOYD,
        "total[j] > total[heaviest]",
        "total[j] < total[heaviest]",
        "tests/test_drop_in.py -k nothing_is_left_for",
    ),
    Fault(
        "draws that count in units of the first potentials",
        "csrc/cpu/kmeans_plusplus.cpp",
        "  *s.draw_scale = scale;\n",
        "  if (scale == 0.0) *s.draw_scale = scale;\n",
        "tests/test_kmeans_plusplus.py -k rows_are_equal",
    ),
    Fault(
        "totals of draws in units of before",
        "csrc/cpu/kmeans_plusplus.cpp",
        "!noted || scale != *s.draw_scale",
        "!noted",
        "tests/test_kmeans_plusplus.py -k rows_are_equal",
    ),
    Fault(
        "columns that no thread of a team adds up",
        LLOYD,
        "const Part columns(z.d, thread, threads);",
        "const Part columns(z.d / 2 * 2, thread, threads + (threads > 1));",
        "tests/test_lloyd.py -k 'runs_are_cut'",
    ),
    Fault(
        "the second half counted from the first row on",
        "csrc/cpu/bisect.cpp",
        "sizes[half] = at - before;",
        "sizes[half] = at;",
        "tests/test_bisect.py -k definition",
    ),
    Fault(
        "a number drawn twice",
        "dcfast/cluster/init.py",
        "share[drawn] = 0.0",
        "share[drawn[:0]] = 0.0",
        "tests/test_kmeans.py -k drawn",
    ),
    Fault(
        "sum_grid: a unit too large",
        ACCUMULATE,
        "low[i] = exponent - bits;",
        "low[i] = exponent - bits + 1;",
        "tests/test_lloyd.py -k grid",
    ),
    Fault(
        "k-means++: a scale past the doubles",
        "csrc/cpu/kmeans_plusplus.cpp",
        "61 - exponent < 1023 ? 61 - exponent : 1023",
        "61 - exponent",
        "tests/test_drop_in.py -k left_to_draw",
    ),
    Fault(
        "faiss: bounds for the rows and not for what they are lengthened to",
        "dcfast/faiss/clustering.py",
        "ops.distance_bounds(n, self.queries.shape[1], self.x.device)",
        "ops.distance_bounds(n, self.x.shape[1], self.x.device)",
        "tests/test_faiss.py -k every_dimension",
    ),
    Fault(
        "faiss: vectors that are not finite set the norm of the others",
        "dcfast/faiss/inner_product.py",
        "torch.where(norms.isfinite(), norms, 0).max()",
        "norms.max()",
        "tests/test_faiss.py -k not_finite_or_huge",
    ),
    Fault(
        "faiss: the bound of a range is inside",
        "dcfast/faiss/index.py",
        "scores < bound",
        "scores <= bound",
        "tests/test_faiss.py -k range",
    ),
    Fault(
        "a file is written in place",
        "dcfast/_files.py",
        'path.name + ".partial"',
        "path.name",
        "tests/test_faiss_gpu.py -k whole",
    ),
    Fault(
        "a process trains on a single image",
        "dcfast/deepcluster/crops.py",
        "n_images // 2",
        "n_images",
        "tests/deepcluster/test_torchrun.py -k parts",
    ),
]


class Tree:
    """A copy of the sources with a build of its own, whose dcfast the tests import."""

    def __init__(self, folder: Path) -> None:
        import pybind11

        self.root, self.build = folder / "tree", folder / "build"
        ignored = shutil.ignore_patterns(".*", "build", "dist", "runs", "__pycache__", "*.so", "*.egg-info")
        shutil.copytree(ROOT, self.root, ignore=ignored)
        self.build.mkdir()
        # No interpreter's folder of its own comes before the copy; the tools come from the interpreter's environment.
        tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        self.environment = {**os.environ, "PYTHONPATH": str(self.root), "PYTHONDONTWRITEBYTECODE": "1", "PATH": tools}
        self.run(
            "cmake", str(self.root), "-GNinja", "-DCMAKE_BUILD_TYPE=Release", "-DDCFAST_CUDA=OFF",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DPython_EXECUTABLE={sys.executable}",
            f"-DDCFAST_OUTPUT_DIR={self.root / 'dcfast'}", cwd=self.build,
        )  # fmt: skip
        self.compile()
        where = self.run(sys.executable, "-c", "import dcfast._C as c; print(c.__file__)", cwd=self.root)
        assert Path(where.stdout.strip()).parent == self.root / "dcfast", where.stdout

    def run(self, *command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run a command that must succeed."""
        done = subprocess.run(command, cwd=cwd, env=self.environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
        return done

    def compile(self) -> None:
        """Bring the extension up to date."""
        self.run("cmake", "--build", ".", cwd=self.build)

    def test(self, tests: str) -> tuple[bool, str]:
        """Whether the tests pass, and the first that does not."""
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-x",
            "-q",
            "--no-header",
            "-p",
            "no:cacheprovider",
            *shlex.split(tests),
        ]
        done = subprocess.run(command, cwd=self.root, env=self.environment, capture_output=True, text=True, timeout=600)
        if done.returncode not in (0, 1):
            sys.exit(f"{' '.join(command)} exited with {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        return done.returncode == 0, failed[0].split(" - ")[0].removeprefix("FAILED ") if failed else ""

    def plant(self, fault: Fault) -> None:
        """Put a fault into the copy."""
        path = self.root / fault.path
        source = path.read_text()
        if source.count(fault.old) != 1:
            sys.exit(f"{fault.name}: {fault.path} holds {fault.old!r} {source.count(fault.old)} times, expected 1")
        path.write_text(source.replace(fault.old, fault.new))
        self.compile()  # without the fault before this one, even if this one is in Python

    def restore(self, fault: Fault) -> None:
        """Take the fault out again; the next compilation sees it."""
        (self.root / fault.path).write_text((ROOT / fault.path).read_text())


def main(wanted: list[str]) -> int:
    """Plant every fault whose name holds one of the words (all without words); the number of those not caught."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    faults = [f for f in FAULTS if not wanted or any(word in f.name for word in wanted)]
    table = Table(title="planted faults", title_justify="left")
    for column in ("fault", "in", "seconds", "caught by"):
        table.add_column(column)
    console = Console(width=160)
    survived = 0
    with tempfile.TemporaryDirectory(prefix="dcfast-mutate-") as folder:
        tree = Tree(Path(folder))
        for tests in dict.fromkeys(f.tests for f in faults):
            green, failed = tree.test(tests)
            if not green:
                sys.exit(f"{failed} fails without any fault")
        for fault in faults:
            began = time.monotonic()
            tree.plant(fault)
            green, failed = tree.test(fault.tests)
            tree.restore(fault)
            survived += green
            verdict = "[red]NOT CAUGHT[/]" if green else escape(failed)
            table.add_row(fault.name, fault.path, f"{time.monotonic() - began:.0f}", verdict)
            console.print(f"{fault.name}: {'NOT CAUGHT' if green else 'caught'}")
    console.print(table)
    console.print(f"{len(faults) - survived} of {len(faults)} faults caught")
    return survived


if __name__ == "__main__":
    sys.exit(1 if main(sys.argv[1:]) else 0)
