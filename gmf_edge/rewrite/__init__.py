"""Graph rewriting, one rule per file: 1-plain.onnx -> 2-fused.onnx, each pass proved equal on numbers when it runs; and its other forms.

passes           the rules in their order
                 batchnorm_into_conv, cpe_identity, head, output_norm, group_mix_attention (qkv_rows: its Linear's columns)
bodies           fused -> portable or plugin
channel_last     fused -> the form for CPU libraries
image_sizes      one image size -> any
opset            the same graph at a runtime's opset (hard_swish: in types that importers do not take)
shared_weights   several graphs over one weights.bin
constants        reading and making constants
"""
