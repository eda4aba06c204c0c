"""A plan as one ONNX graph: tokens and the cache in, logits of chosen positions and the cache out.

Attention is one `GroupQueryAttention` node for each class of heads of a layer. Its cache holds filled slots in any
order: `position_ids` carry the true positions, `filled` and `slots` how much of the cache a step may see, so that
protected tokens and a window lie side by side without a gap. Where a class has a window, `bias` hides from each token
of a prompt what its window has left.

    ids, positions     [batch, tokens] int64
    keep               [kept] int64       positions in the chunk that get logits
    filled.G           [batch] int32      slots of group G that are filled once the step's tokens are in, less one
    slots.G            scalar int32       the largest of those, plus one
    bias.G             [batch, 1, tokens, slots.G] float32, for groups with a window
    past.L.C.k, .v     [batch, heads, capacity, head_dim], written in place as present.L.C.k, .v
    logits             [batch, kept, vocab]

A group is all classes of all layers that keep the same tokens. Every product is `MatMulNBits` on blocks of codes, or
`MatMul`; matrices that read the same input and are stored alike are one product.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from backends.onnxruntime import runner
from backends.onnxruntime.codes import Blocks
from backends.onnxruntime.families import Family

Array = NDArray[np.generic]

MICROSOFT = "com.microsoft"
ALIGNED_BYTES = 4096
"""Constants begin at whole pages of their file, so that it can be mapped."""

OPSET, IR_VERSION = 21, 10
FLOAT_COMPUTE, INT8_COMPUTE = 1, 4
"""MatMulNBits' accuracy_level that multiplies floats, and the one that rounds its input to 8 bits, block by block, and
multiplies integers."""

CACHE_TYPES = {32: TensorProto.FLOAT, 8: TensorProto.INT8, 4: TensorProto.UINT8}


@dataclass(frozen=True, slots=True)
class HeadClass:
    """KV heads of one layer that are cached alike: in a group, at so many bits, with a step for each channel.

    k_scale, v_scale  [heads, head_dim], empty at 32 bits
    """

    heads: tuple[int, ...]
    group: int
    windowed: bool
    bits: int
    k_scale: NDArray[np.float32]
    v_scale: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class LayerShape:
    """One layer's attention, its classes and the table its rotary embedding reads."""

    q_heads: int
    kv_heads: int
    head_dim: int
    classes: tuple[HeadClass, ...]
    table: int

    @property
    def per_kv_head(self) -> int:
        return self.q_heads // self.kv_heads


Matrix = Blocks | NDArray[np.float32]
"""A matrix [outputs, inputs] in blocks of codes, or as it is."""


class Parameters(Protocol):
    """What the graph reads of a model, by the names of transformers; a matrix comes as it is to be stored."""

    def matrix(self, name: str) -> Matrix: ...

    def vector(self, name: str) -> NDArray[np.float32] | None:
        """A norm's factors or a bias, or None where the model has none of that name."""
        ...

    def alike(self, names: Sequence[str]) -> bool:
        """Whether matrices are stored in one format, so that their rows may be one product."""
        ...


@dataclass
class Graph:
    """A graph being written: its nodes, and its constants by name."""

    family: Family
    layers: Sequence[LayerShape]
    tables: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]]
    parameters: Parameters
    head: str
    constants: dict[str, Array] = field(default_factory=dict)
    _nodes: list[onnx.NodeProto] = field(default_factory=list)
    _inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    _outputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    _small: dict[str, Array] = field(default_factory=dict)
    _sums: dict[tuple[str, int], str] = field(default_factory=dict)

    def model(self) -> onnx.ModelProto:
        """The graph as a model whose constants lie outside, one behind the other as `data` gives them."""
        family = self.family
        self._value(self._inputs, "ids", TensorProto.INT64, ["batch", "tokens"])
        self._value(self._inputs, "positions", TensorProto.INT64, ["batch", "tokens"])
        self._value(self._inputs, "keep", TensorProto.INT64, ["kept"])
        self._groups()
        for number, (cos, sin) in enumerate(self.tables):
            self.constants[f"cos.{number}"], self.constants[f"sin.{number}"] = cos, sin
        hidden = self._embed("model.embed_tokens.weight")
        added = ""
        for index, shape in enumerate(self.layers):
            hidden, added = self._layer(index, shape, hidden, added)
        if added:
            hidden = self._node("Add", [hidden, added], "hidden")
        kept = self._node("Gather", [hidden, "keep"], "kept", axis=1)
        normed, _ = self._norm(kept, "", family.final_norm)
        logits = self._linear(normed, (self.head,), "logits" if not family.final_softcap else "raw")
        if family.final_softcap:
            cap = self._scalar("softcap", family.final_softcap)
            capped = self._node("Tanh", [self._node("Div", [logits, cap], "small")], "bent")
            self._node("Mul", [capped, cap], "logits")
        self._value(self._outputs, "logits", TensorProto.FLOAT, ["batch", "kept", "vocab"])
        return self._proto()

    def _proto(self) -> onnx.ModelProto:
        inside = [onnx.numpy_helper.from_array(value, name) for name, value in self._small.items()]
        outside = [_outside(name, value, offset) for name, value, offset in self._placed()]
        graph = helper.make_graph(self._nodes, "plan", self._inputs, self._outputs, [*inside, *outside])
        imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        return helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION, producer_name="planner")

    def data(self) -> bytes:
        """The file of the constants, once `model` has collected them."""
        content = bytearray()
        for _, value, offset in self._placed():
            content.extend(bytes(offset - len(content)))
            content.extend(np.ascontiguousarray(value).tobytes())
        return bytes(content)

    def _placed(self) -> Iterator[tuple[str, Array, int]]:
        """(name, constant, where it begins in the file)."""
        end = 0
        for name, value in self.constants.items():
            offset = -(-end // ALIGNED_BYTES) * ALIGNED_BYTES
            yield name, value, offset
            end = offset + value.nbytes

    def product(self, x: str, name: str) -> str:
        """Only a product with the matrix of that name; for graphs that are not a whole model."""
        return self._linear(x, (name,))

    def alone(self, inputs: Mapping[str, tuple[int, Sequence[int | str]]], out: str) -> onnx.ModelProto:
        """What was written so far as a model of its own, from named inputs (type, shape) to a float32 output."""
        for name, (kind, shape) in inputs.items():
            self._value(self._inputs, name, kind, shape)
        self._value(self._outputs, out, TensorProto.FLOAT, ["batch", "tokens", "out"])
        return self._proto()

    # --- pieces of a layer ----------------------------------------------------------------------

    def _groups(self) -> None:
        kinds = {each.group: each.windowed for shape in self.layers for each in shape.classes}
        for group, windowed in sorted(kinds.items()):
            self._value(self._inputs, f"filled.{group}", TensorProto.INT32, ["batch"])
            self._value(self._inputs, f"slots.{group}", TensorProto.INT32, [])
            if windowed:
                self._value(self._inputs, f"bias.{group}", TensorProto.FLOAT, ["batch", 1, "tokens", f"seen.{group}"])

    def _layer(self, index: int, shape: LayerShape, hidden: str, added: str) -> tuple[str, str]:
        """One layer's nodes. The residual stream is `hidden` + `added`, where `added` may still be to add."""
        family, at = self.family, f"model.layers.{index}"
        normed, hidden = self._norm(hidden, added, f"{at}.input_layernorm")
        attended = self._attention(index, shape, normed)
        if family.parallel:
            total = self._node("Add", [attended, self._mlp(at, normed)], f"{at}.both")
            return hidden, total
        if family.sandwich:
            attended, _ = self._norm(attended, "", f"{at}.post_attention_layernorm")
            normed, hidden = self._norm(hidden, attended, f"{at}.pre_feedforward_layernorm")
            out, _ = self._norm(self._mlp(at, normed), "", f"{at}.post_feedforward_layernorm")
            return hidden, out
        normed, hidden = self._norm(hidden, attended, f"{at}.post_attention_layernorm")
        return hidden, self._mlp(at, normed)

    def _mlp(self, at: str, normed: str) -> str:
        family = self.family
        names = tuple(f"{at}.{name}.weight" for name in family.up)
        if not family.gated:
            return self._linear(self._activate(self._linear(normed, names), at), (f"{at}.{family.down}.weight",))
        if len(names) == 1 or self.parameters.alike(names):
            both = self._linear(normed, names)
            gate, up = self._nodes_out("Split", [both], [f"{at}.gate", f"{at}.up"], axis=-1, num_outputs=2)
        else:
            gate, up = (self._linear(normed, (name,)) for name in names)
        product = self._node("Mul", [self._activate(gate, at), up], f"{at}.product")
        return self._linear(product, (f"{at}.{family.down}.weight",))

    def _activate(self, x: str, at: str) -> str:
        name = f"{at}.activated"
        if self.family.activation == "silu":
            return self._node("QuickGelu", [x], name, domain=MICROSOFT, alpha=1.0)
        approximate = "tanh" if self.family.activation == "gelu-tanh" else "none"
        return self._node("Gelu", [x], name, approximate=approximate)

    def _attention(self, index: int, shape: LayerShape, normed: str) -> str:
        at = f"model.layers.{index}"
        parts = self._projected(at, shape, normed)
        heard = [
            self._heads(index, number, kind, shape, q, k, v)
            for number, (kind, (q, k, v)) in enumerate(zip(shape.classes, parts, strict=True))
        ]
        joined = heard[0] if len(heard) == 1 else self._node("Concat", heard, f"{at}.heard", axis=-1)
        columns = _rows(shape, "q")
        return self._linear(joined, (f"{at}.{self.family.out}.weight",), columns=columns)

    def _projected(self, at: str, shape: LayerShape, normed: str) -> list[tuple[str, str, str]]:
        """(query, key, value) of every class, or (all three in one, "", "") where nothing stands between."""
        names = tuple(f"{at}.{name}.weight" for name in self.family.qkv)
        fused = len(names) == 1 or self.parameters.alike(names)
        classes = range(len(shape.classes))
        if fused:
            rows = np.concatenate([_rows(shape, part, c) + _start(shape, part) for c in classes for part in "qkv"])
            everything = self._linear(normed, names, rows=rows)
            if not self.family.qk_norm:
                sizes = [sum(len(_rows(shape, part, c)) for part in "qkv") for c in classes]
                return [(one, "", "") for one in self._split(everything, sizes, [f"{at}.qkv.{c}" for c in classes])]
            sizes = [len(_rows(shape, part, c)) for c in classes for part in "qkv"]
            found = self._split(everything, sizes, [f"{at}.{part}.{c}" for c in classes for part in "qkv"])
            by_class = [tuple(found[3 * c : 3 * c + 3]) for c in classes]
        else:
            columns = []
            for part, name in zip("qkv", names, strict=True):
                whole = self._linear(normed, (name,), rows=_rows(shape, part))
                sizes = [len(_rows(shape, part, c)) for c in classes]
                columns.append(self._split(whole, sizes, [f"{at}.{part}.{c}" for c in classes]))
            by_class = list(zip(*columns, strict=True))
        if self.family.qk_norm:
            return [
                (
                    self._head_norm(q, f"{at}.self_attn.q_norm", shape.head_dim),
                    self._head_norm(k, f"{at}.self_attn.k_norm", shape.head_dim),
                    v,
                )
                for q, k, v in by_class
            ]
        return [(q, k, v) for q, k, v in by_class]

    def _heads(self, index: int, number: int, kind: HeadClass, shape: LayerShape, q: str, k: str, v: str) -> str:
        """One class's attention, its cache written in place."""
        heads, name = len(kind.heads), f"{index}.{number}"
        width = shape.head_dim * kind.bits // 8 if kind.bits < 8 else shape.head_dim
        scales = ["", ""]
        quantised: dict[str, str | int] = {}
        for i, part in enumerate("kv"):
            cache: list[int | str] = ["batch", heads, f"capacity.{name}", width]
            self._value(self._inputs, f"past.{name}.{part}", CACHE_TYPES[kind.bits], cache)
            self._value(self._outputs, f"present.{name}.{part}", CACHE_TYPES[kind.bits], cache)
            if kind.bits != 32:
                scale = kind.k_scale if part == "k" else kind.v_scale
                self.constants[f"scale.{name}.{part}"] = scale.astype(np.float32)[:, None]
                scales[i] = f"scale.{name}.{part}"
        if kind.bits != 32:
            quantised = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": kind.bits}
        bias = f"bias.{kind.group}" if kind.windowed else ""
        inputs = [q, k, v, f"past.{name}.k", f"past.{name}.v", f"filled.{kind.group}", f"slots.{kind.group}"]
        inputs += [f"cos.{shape.table}", f"sin.{shape.table}", "positions", bias, "", *scales]
        out = f"heard.{name}"
        self._nodes_out(
            "GroupQueryAttention",
            inputs,
            [out, f"present.{name}.k", f"present.{name}.v"],
            domain=MICROSOFT,
            num_heads=heads * shape.per_kv_head,
            kv_num_heads=heads,
            do_rotary=1,
            scale=float(self.family.attention_scale),
            softcap=float(self.family.attention_softcap),
            **quantised,
        )
        return out

    # --- operations -----------------------------------------------------------------------------

    def _embed(self, name: str) -> str:
        matrix = self.parameters.matrix(name)
        if not isinstance(matrix, Blocks):
            self.constants[name] = matrix
            found = self._node("Gather", [name, "ids"], "embedded")
        else:
            found = self._looked_up(name, matrix)
        if self.family.embed_scale == 1.0:
            return found
        return self._node("Mul", [found, self._scalar("embed_scale", self.family.embed_scale)], "embedded.scaled")

    def _looked_up(self, name: str, matrix: Blocks) -> str:
        """Rows of a matrix of blocks as floats: the same constants that a tied head multiplies with."""
        self._blocks(name, matrix)
        codes = self._node("Gather", [f"{name}.codes", "ids"], "embedded.codes")
        if matrix.bits < 8:
            mask = self._const("embedded.mask", np.array(2**matrix.bits - 1, np.uint8))
            parts = []
            for i in range(8 // matrix.bits):
                shift = self._const(f"embedded.shift.{i}", np.array(i * matrix.bits, np.uint8))
                moved = self._node("BitShift", [codes, shift], f"embedded.moved.{i}", direction="RIGHT")
                parts.append(self._node("BitwiseAnd", [moved, mask], f"embedded.part.{i}"))
            last = self._const("embedded.last", np.array([-1], np.int64))
            wide = [self._node("Unsqueeze", [part, last], f"{part}.wide") for part in parts]
            stacked = self._node("Concat", wide, "embedded.stacked", axis=-1)
            per_block = self._const("embedded.block", np.array([0, 0, matrix.scale.shape[1], matrix.block], np.int64))
            codes = self._node("Reshape", [stacked, per_block], "embedded.unpacked")
        numbers = self._node("Cast", [codes], "embedded.numbers", to=TensorProto.FLOAT)
        half = self._scalar("embedded.half", float(2 ** (matrix.bits - 1)))
        centred = self._node("Sub", [numbers, half], "embedded.centred")
        last = self._const("embedded.axis", np.array([-1], np.int64))

        def per_block_values(kind: str) -> str:
            rows = self._node("Gather", [f"{name}.{kind}", "ids"], f"embedded.{kind}")
            return self._node("Unsqueeze", [rows, last], f"embedded.{kind}.wide")

        values = self._node("Mul", [centred, per_block_values("scale")], "embedded.values")
        if matrix.minimum is not None:
            # The correction is stored transposed for the product; a lookup reads its columns.
            columns = self._node("Gather", [f"{name}.minimum", "ids"], "embedded.minimum.columns", axis=1)
            rows = self._node("Transpose", [columns], "embedded.minimum.rows", perm=[1, 2, 0])
            values = self._node("Add", [values, self._node("Unsqueeze", [rows, last], "embedded.low")], "embedded.all")
        shape = self._const("embedded.shape", np.array([0, 0, -1], np.int64))
        return self._node("Reshape", [values, shape], "embedded")

    def _linear(
        self,
        x: str,
        names: tuple[str, ...],
        out: str = "",
        rows: NDArray[np.intp] | None = None,
        columns: NDArray[np.intp] | None = None,
    ) -> str:
        """x times the matrices of those names, one below the other, their rows or columns reordered."""
        parts = [self.parameters.matrix(name) for name in names]
        name, out = names[0] if len(names) == 1 else f"{names[0]}+", out or f"{names[0]}.out"
        bias = self._bias(names, parts, rows)
        product = out if bias is None else f"{out}.product"
        blocks = [part for part in parts if isinstance(part, Blocks)]
        if blocks:
            if columns is not None and not _by_whole_blocks(columns, blocks[0].block):
                # Codes share a scale block by block, so the input goes back into the source's order instead.
                order = self._const(f"{name}.order", np.argsort(columns))
                x, columns = self._node("Gather", [x, order], f"{name}.input", axis=-1), None
            self._block_product(x, name, _reordered(blocks, rows, columns), product)
        else:
            dense = np.concatenate([part for part in parts if not isinstance(part, Blocks)])
            dense = dense if rows is None else dense[rows]
            dense = dense if columns is None else dense[:, columns]
            if name in self.constants:  # a tied embedding, stored once: the lookup reads its rows
                self._node("FusedMatMul", [x, name], product, domain=MICROSOFT, transB=1)
            else:
                self.constants[name] = np.ascontiguousarray(dense.T)
                self._node("MatMul", [x, name], product)
        if bias is not None:
            self.constants[f"{name}.bias"] = bias
            self._node("Add", [product, f"{name}.bias"], out)
        return out

    def _bias(
        self, names: Sequence[str], parts: Sequence[Matrix], rows: NDArray[np.intp] | None
    ) -> NDArray[np.float32] | None:
        """The biases of those matrices one below the other, zeros where one has none; None where none has."""
        found = [self.parameters.vector(f"{name.removesuffix('.weight')}.bias") for name in names]
        if all(each is None for each in found):
            return None
        held = (
            np.zeros(_outputs(part), np.float32) if each is None else each
            for each, part in zip(found, parts, strict=True)
        )
        bias = np.concatenate(list(held))
        return bias if rows is None else bias[rows]

    def _block_product(self, x: str, name: str, blocks: Blocks, out: str) -> None:
        self._blocks(name, blocks)
        inputs = [x, f"{name}.codes", f"{name}.scale"]
        rows, cols = blocks.codes.shape
        options = {
            "K": cols,
            "N": rows,
            "bits": blocks.bits,
            "block_size": blocks.block,
            "accuracy_level": INT8_COMPUTE if blocks.rounds_inputs else FLOAT_COMPUTE,
        }
        if blocks.minimum is None:
            self._node("MatMulNBits", inputs, out, domain=MICROSOFT, **options)
            return
        plain = self._node("MatMulNBits", inputs, f"{out}.codes", domain=MICROSOFT, **options)
        low = self._node("MatMul", [self._block_sums(x, cols, blocks.block), f"{name}.minimum"], f"{out}.low")
        self._node("Add", [plain, low], out)

    def _blocks(self, name: str, blocks: Blocks) -> None:
        """A matrix's constants, once: a tied head shares them with the embedding."""
        if f"{name}.codes" in self.constants:
            return
        self.constants[f"{name}.codes"] = blocks.packed()
        self.constants[f"{name}.scale"] = blocks.scale
        if blocks.minimum is not None:
            self.constants[f"{name}.minimum"] = np.ascontiguousarray(blocks.minimum.T)

    def _block_sums(self, x: str, cols: int, block: int) -> str:
        """Sums of an input over its blocks [batch, tokens, cols / block], once for all that read it."""
        if (x, block) not in self._sums:
            # Half the time, with 1,536 inputs, of a product with a matrix of ones.
            shape = self._const(f"blocks.{cols}.{block}", np.array([0, 0, cols // block, block], np.int64))
            apart = self._node("Reshape", [x, shape], f"{x}.blocks.{block}")
            last = self._const("last", np.array([-1], np.int64))
            self._sums[x, block] = self._node("ReduceSum", [apart, last], f"{x}.sums.{block}", keepdims=0)
        return self._sums[x, block]

    def _norm(self, x: str, added: str, name: str) -> tuple[str, str]:
        """(norm of x + added, x + added)."""
        factors = self.parameters.vector(f"{name}.weight")
        if factors is None:
            raise ValueError(f"{name}: the model has no such norm")
        out, total = f"{name}.out", f"{name}.sum"
        self.constants.setdefault(f"{name}.weight", (factors + np.float32(self.family.norm_offset)).astype(np.float32))
        inputs = [f"{name}.weight"]
        if self.family.layer_norm:
            bias = self.parameters.vector(f"{name}.bias")
            self.constants[f"{name}.bias"] = np.zeros_like(factors) if bias is None else bias
            inputs.append(f"{name}.bias")
            if added:
                x = self._node("Add", [x, added], total)
            return self._node("LayerNormalization", [x, *inputs], out, axis=-1, epsilon=self.family.eps), x
        if not added:
            return self._node("SimplifiedLayerNormalization", [x, *inputs], out, axis=-1, epsilon=self.family.eps), x
        self._nodes_out(
            "SkipSimplifiedLayerNormalization",
            [x, added, *inputs],
            [out, "", "", total],
            domain=MICROSOFT,
            epsilon=self.family.eps,
        )
        return out, total

    def _head_norm(self, x: str, name: str, head_dim: int) -> str:
        """Each head's vector normed by itself."""
        by_head = self._const(f"by_head.{head_dim}", np.array([0, 0, -1, head_dim], np.int64))
        flat = self._const("flat", np.array([0, 0, -1], np.int64))
        factors = self.parameters.vector(f"{name}.weight")
        if factors is None:
            raise ValueError(f"{name}: the model has no such norm")
        self.constants.setdefault(f"{name}.weight", (factors + np.float32(self.family.norm_offset)).astype(np.float32))
        heads = self._node("Reshape", [x, by_head], f"{x}.heads")
        normed = self._node(
            "SimplifiedLayerNormalization", [heads, f"{name}.weight"], f"{x}.normed", axis=-1, epsilon=self.family.eps
        )
        return self._node("Reshape", [normed, flat], f"{x}.flat")

    def _split(self, x: str, sizes: Sequence[int], names: Sequence[str]) -> list[str]:
        if len(sizes) == 1:
            return [x]
        told = self._const(f"sizes.{'.'.join(map(str, sizes))}", np.array(sizes, np.int64))
        return self._nodes_out("Split", [x, told], names, axis=-1)

    def _scalar(self, name: str, value: float) -> str:
        return self._const(name, np.array(value, np.float32))

    def _const(self, name: str, value: Array) -> str:
        self._small[name] = value
        return name

    def _node(self, kind: str, inputs: Iterable[str], out: str, domain: str = "", **options: object) -> str:
        return self._nodes_out(kind, inputs, [out], domain, **options)[0]

    def _nodes_out(
        self, kind: str, inputs: Iterable[str], outs: Sequence[str], domain: str = "", **options: object
    ) -> list[str]:
        node = helper.make_node(kind, list(inputs), list(outs), name=outs[0], domain=domain)
        node.attribute.extend(helper.make_attribute(name, value) for name, value in options.items())
        self._nodes.append(node)
        return list(outs)

    @staticmethod
    def _value(to: list[onnx.ValueInfoProto], name: str, kind: int, shape: Sequence[int | str]) -> None:
        to.append(helper.make_tensor_value_info(name, kind, list(shape)))


def _outside(name: str, value: Array, offset: int) -> onnx.TensorProto:
    """A constant that lies in another file."""
    tensor = TensorProto()
    tensor.name = name
    tensor.data_type = helper.np_dtype_to_tensor_dtype(value.dtype)
    tensor.dims.extend(value.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, told in (("location", runner.GRAPH_DATA), ("offset", offset), ("length", value.nbytes)):
        tensor.external_data.add(key=key, value=str(told))
    return tensor


def _start(shape: LayerShape, part: str) -> int:
    """Where the rows of the queries, keys or values begin in a matrix of all three."""
    return {"q": 0, "k": shape.q_heads, "v": shape.q_heads + shape.kv_heads}[part] * shape.head_dim


def _rows(shape: LayerShape, part: str, number: int | None = None) -> NDArray[np.intp]:
    """The rows of a projection in the order of the classes, or those of one class."""
    classes = shape.classes if number is None else shape.classes[number : number + 1]
    per = shape.per_kv_head if part == "q" else 1
    heads = np.array([h * per + i for kind in classes for h in kind.heads for i in range(per)], np.intp)
    return (heads[:, None] * shape.head_dim + np.arange(shape.head_dim)).ravel()


def _outputs(matrix: Matrix) -> int:
    return len(matrix.codes if isinstance(matrix, Blocks) else matrix)


def _by_whole_blocks(columns: NDArray[np.intp], block: int) -> bool:
    """Whether columns in a new order are still whole blocks.

    >>> _by_whole_blocks(np.array([2, 3, 0, 1]), 2), _by_whole_blocks(np.array([1, 2, 3, 0]), 2)
    (True, False)
    """
    firsts = columns[::block]
    whole = (firsts[:, None] + np.arange(block)).ravel()
    return np.array_equal(columns, whole) and not np.any(firsts % block)


def _reordered(blocks: Sequence[Blocks], rows: NDArray[np.intp] | None, columns: NDArray[np.intp] | None) -> Blocks:
    """Matrices of blocks as one, rows and columns reordered; columns move by whole blocks."""
    bits, block = blocks[0].bits, blocks[0].block
    codes, scale = np.concatenate([b.codes for b in blocks]), np.concatenate([b.scale for b in blocks])
    lows = [b.minimum for b in blocks if b.minimum is not None]
    minimum = np.concatenate(lows) if lows else None
    if rows is not None:
        codes, scale = codes[rows], scale[rows]
        minimum = None if minimum is None else minimum[rows]
    if columns is not None:
        first = columns[::block] // block
        codes, scale = codes[:, columns], scale[:, first]
        minimum = None if minimum is None else minimum[:, first]
    return Blocks(bits, codes, scale, minimum, blocks[0].rounds_inputs)
