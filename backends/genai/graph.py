"""A plan as the ONNX graph that onnxruntime-genai's generator binds.

    input_ids             [batch, tokens] int64
    attention_mask        [batch, seen] int64         ones: how many tokens there are, these included
    past_key_values.L.key, .value
                          [batch, heads, slots, head_dim], written in place as present.L.key, .value
    logits                [batch, tokens, vocab]

`GroupQueryAttention` counts positions from the mask and turns keys itself. The cache of a windowed layer is a ring
(`sliding_window_cache`) of which each token sees the newest `local_window_size`, itself included. Products, norms and
the embedding are those of the onnxruntime backend.
"""

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto

from backends.onnxruntime.graph import CACHE_TYPES, MICROSOFT, Graph, HeadClass, LayerShape

SEEN_LESS_ONE, SEEN = "seen.less_one", "seen.most"


@dataclass
class GenaiGraph(Graph):
    """A graph whose layers have one class of heads each; `windows` is the length of each layer's ring, 0 for none."""

    windows: tuple[int, ...] = ()

    def model(self) -> onnx.ModelProto:
        """The graph as a model whose constants lie outside, one behind the other as `data` gives them."""
        self._value(self._inputs, "input_ids", TensorProto.INT64, ["batch", "tokens"])
        self._value(self._inputs, "attention_mask", TensorProto.INT64, ["batch", "seen"])
        self._node("Identity", ["input_ids"], "ids")
        self._counted()
        for number, (cos, sin) in enumerate(self.tables):
            self.constants[f"cos.{number}"], self.constants[f"sin.{number}"] = cos, sin
        hidden = self._embed("model.embed_tokens.weight")
        added = ""
        for index, shape in enumerate(self.layers):
            hidden, added = self._layer(index, shape, hidden, added)
        if added:
            hidden = self._node("Add", [hidden, added], "hidden")
        self._logits(hidden)
        return self._proto()

    def _counted(self) -> None:
        """How many tokens each sequence has had, less one, and the most of them."""
        one, last = self._const("one", np.array(1, np.int64)), self._const("row", np.array([1], np.int64))
        total = self._node("ReduceSum", ["attention_mask", last], "seen.total", keepdims=0)
        less = self._node("Sub", [total, one], "seen.before")
        self._node("Cast", [less], SEEN_LESS_ONE, to=TensorProto.INT32)
        shape = self._node("Shape", ["attention_mask"], "mask.shape")
        most = self._node("Gather", [shape, one], "mask.columns", axis=0)
        self._node("Cast", [most], SEEN, to=TensorProto.INT32)

    def _logits(self, hidden: str) -> None:
        cap = self.family.final_softcap
        normed, _ = self._norm(hidden, "", self.family.final_norm)
        logits = self._linear(normed, (self.head,), "raw" if cap else "logits")
        if cap:
            scale = self._scalar("softcap", cap)
            capped = self._node("Tanh", [self._node("Div", [logits, scale], "small")], "bent")
            self._node("Mul", [capped, scale], "logits")
        self._value(self._outputs, "logits", TensorProto.FLOAT, ["batch", "tokens", "vocab"])

    def _heads(self, index: int, number: int, kind: HeadClass, shape: LayerShape, q: str, k: str, v: str) -> str:
        """A layer's attention, its cache written in place."""
        window, coded = self.windows[index], kind.bits != 32
        width = shape.head_dim * kind.bits // 8 if kind.bits < 8 else shape.head_dim
        # A symbol of its own: the slots of a ring are not those of a cache that keeps everything.
        cache: list[int | str] = ["batch", shape.kv_heads, f"ring.{window}" if window else "slots", width]
        scales = ["", ""]
        for i, part in enumerate(("key", "value")):
            self._value(self._inputs, f"past_key_values.{index}.{part}", CACHE_TYPES[kind.bits], cache)
            self._value(self._outputs, f"present.{index}.{part}", CACHE_TYPES[kind.bits], cache)
            if coded:
                scales[i] = f"scale.{index}.{part}"
                scale = kind.v_scale if i else kind.k_scale
                self.constants[scales[i]] = scale.astype(np.float32)[:, None]
        options: dict[str, str | int] = {}
        if coded:
            options = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": kind.bits}
        if window:
            options |= {"local_window_size": window, "sliding_window_cache": 1}
        past = [f"past_key_values.{index}.key", f"past_key_values.{index}.value"]
        tables = [f"cos.{shape.table}", f"sin.{shape.table}"]
        out = f"heard.{index}"
        self._nodes_out(
            "GroupQueryAttention",
            [q, k, v, *past, SEEN_LESS_ONE, SEEN, *tables, "", "", "", *(scales if coded else ())],
            [out, f"present.{index}.key", f"present.{index}.value"],
            domain=MICROSOFT,
            num_heads=shape.q_heads,
            kv_num_heads=shape.kv_heads,
            do_rotary=1,
            scale=float(self.family.attention_scale),
            softcap=float(self.family.attention_softcap),
            **options,
        )
        return out
