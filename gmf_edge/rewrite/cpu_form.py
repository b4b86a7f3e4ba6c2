"""proto"""
from __future__ import annotations
from typing import Any
import numpy as np
import onnx_ir
from onnx_ir import DataType
from gmf_edge.precision.int8_layers import constant_array, new_constant

def only_user(value):
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None

def put(graph, before, op_type, inputs, name, outputs=1, domain="", **attributes):
    node = onnx_ir.node(op_type, inputs, attributes=attributes, name=name, num_outputs=outputs, domain=domain)
    for i, v in enumerate(node.outputs):
        v.name = f"{name}/output{i or ''}"; v.dtype = DataType.FLOAT
    graph.graph.insert_before(before, node)
    return node

def sizes(graph, *s):
    return new_constant(graph, np.asarray(s, np.int64), f"sizes/{'x'.join(map(str, s))}")

def maps_channel_last(graph):
    n = 0
    for node in list(graph.graph):
        if node.op_type != "Transpose" or list(node.attributes["perm"].value) != [0, 2, 1]:
            continue
        user = only_user(node.outputs[0])
        src = node.inputs[0].producer()
        if user is not None and user.op_type == "Reshape" and len(user.outputs[0].shape or ()) == 4:
            h, w = (int(s) for s in user.outputs[0].shape[2:])
            c = int(user.outputs[0].shape[1])
            r = put(graph, node, "Reshape", (node.inputs[0], sizes(graph, 0, h, w, c)), f"{node.name}/grid")
            t = put(graph, node, "Transpose", (r.outputs[0],), f"{node.name}/map", perm=(0, 3, 1, 2))
            t.outputs[0].shape = user.outputs[0].shape
            user.outputs[0].replace_all_uses_with(t.outputs[0])
            graph.graph.remove(user, safe=True); graph.graph.remove(node, safe=True)
            n += 1
        elif src is not None and src.op_type == "Reshape" and only_user(src.outputs[0]) is node and len(src.inputs[0].shape or ()) == 4 and src.inputs[0].producer().op_type == "Conv":
            c, h, w = (int(s) for s in src.inputs[0].shape[1:])
            t = put(graph, node, "Transpose", (src.inputs[0],), f"{node.name}/grid", perm=(0, 2, 3, 1))
            r = put(graph, node, "Reshape", (t.outputs[0], sizes(graph, 0, h * w, c)), f"{node.name}/tokens")
            r.outputs[0].shape = node.outputs[0].shape
            node.outputs[0].replace_all_uses_with(r.outputs[0])
            graph.graph.remove(node, safe=True); graph.graph.remove(src, safe=True)
            n += 1
    return n

def linears_as_gemm32(graph, want=lambda name: True):
    n = 0
    for node in list(graph.graph):
        if node.op_type != "MatMul" or node.inputs[1].const_value is None or not want(node.name): continue
        add = only_user(node.outputs[0])
        if add is None or add.op_type != "Add": continue
        b = add.inputs[1] if add.inputs[0] is node.outputs[0] else add.inputs[0]
        if b.const_value is None: continue
        x = node.inputs[0]; tokens = x.shape[1]; i, o = (int(s) for s in node.inputs[1].shape)
        f = put(graph, node, "Reshape", (x, sizes(graph, -1, i)), f"{node.name}/flat")
        g = put(graph, node, "Gemm", (f.outputs[0], node.inputs[1], b), f"{node.name}/Gemm")
        r = put(graph, node, "Reshape", (g.outputs[0], sizes(graph, -1, tokens, o)), f"{node.name}/tokens")
        r.outputs[0].shape = add.outputs[0].shape
        add.outputs[0].replace_all_uses_with(r.outputs[0])
        graph.graph.remove(add, safe=True); graph.graph.remove(node, safe=True)
        n += 1
    return n

def columns(graph, value, axis, start, stop, name):
    p = value.producer()
    if p is None:
        a = constant_array(value)
        a = a if a.ndim == 0 or a.size == 1 else np.ascontiguousarray(a.take(range(start, stop), axis=axis if a.ndim > 1 else 0))
        return new_constant(graph, a, f"{name}/{value.name}")
    assert p.op_type == "DequantizeLinear"
    ins = [columns(graph, v, axis, start, stop, name) for v in p.inputs]
    node = onnx_ir.node("DequantizeLinear", ins, attributes=dict((k, v) for k, v in p.attributes.items()), name=f"{name}/{p.name}")
    node.outputs[0].name = f"{name}/{p.outputs[0].name}"; node.outputs[0].dtype = DataType.FLOAT
    graph.graph.insert_before(p, node)
    return node.outputs[0]

def split_linears(graph):
    n = 0
    for node in list(graph.graph):
        if node.op_type != "Split": continue
        r = node.inputs[0].producer()
        if r is None or r.op_type != "Reshape" or only_user(r.outputs[0]) is not node: continue
        g = r.inputs[0].producer()
        if g is None or g.op_type != "Gemm" or only_user(g.outputs[0]) is not r: continue
        tokens = int(r.outputs[0].shape[1])
        width = int(r.outputs[0].shape[2]) // len(node.outputs)
        for k, out in enumerate(list(node.outputs)):
            a, b = k * width, (k + 1) * width
            name = f"{g.name}/{k}"
            w = columns(graph, g.inputs[1], 1, a, b, name)
            bias = columns(graph, g.inputs[2], 0, a, b, name)
            part = put(graph, g, "Gemm", (g.inputs[0], w, bias), name)
            tok = put(graph, g, "Reshape", (part.outputs[0], sizes(graph, -1, tokens, width)), f"{name}/tokens")
            tok.outputs[0].shape = out.shape
            out.replace_all_uses_with(tok.outputs[0])
        graph.graph.remove(node, safe=True); graph.graph.remove(r, safe=True)
        dq = [v.producer() for v in g.inputs]
        graph.graph.remove(g, safe=True)
        n += 1
    return n

def skip_layer_norms(graph):
    """Add(x, Add(MatMul, b)) -> LN  => SkipLayerNormalization"""
    n = 0
    for node in list(graph.graph):
        if node.op_type != "LayerNormalization": continue
        s = node.inputs[0].producer()
        if s is None or s.op_type != "Add": continue
        x, y = s.inputs
        bias = None
        p = y.producer()
        ins = [y, x, node.inputs[1], node.inputs[2]]
        if p is not None and p.op_type == "Add" and any(v.const_value is not None for v in p.inputs) and only_user(y) is s:
            m, c = p.inputs if p.inputs[1].const_value is not None else reversed(p.inputs)
            ins = [m, x, node.inputs[1], node.inputs[2], c]
        k = onnx_ir.node("SkipLayerNormalization", ins, attributes={"epsilon": float(node.attributes["epsilon"].value)}, name=f"{node.name}/skip", num_outputs=4, domain="com.microsoft")
        for i, v in enumerate(k.outputs): v.name = f"{node.name}/skip/{i}"; v.dtype = DataType.FLOAT
        k.outputs[1].name = k.outputs[2].name = ""
        k.outputs[0].shape, k.outputs[3].shape = node.outputs[0].shape, s.outputs[0].shape
        graph.graph.insert_before(node, k)
        node.outputs[0].replace_all_uses_with(k.outputs[0])
        graph.graph.remove(node, safe=True)
        s.outputs[0].replace_all_uses_with(k.outputs[3])
        graph.graph.remove(s, safe=True)
        if len(ins) == 5: graph.graph.remove(p, safe=True)
        graph.graph.sort()
        n += 1
    if n: graph.opset_imports["com.microsoft"] = 1
    return n
