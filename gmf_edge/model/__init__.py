"""GroupMixFormer in PyTorch. The only room that imports torch.

state_dict       checkpoint file -> tensors; no file's code is run
backbone_state   the backbone's share of a classifier's, a detector's or a segmenter's
checkpoint       tensors -> the spec that they tell -> a model
groupmixformer   the model
reference        its logits and maps, which every engine is held against
export           1-plain.onnx (plain_stage: the same, kept in the cache)
torch_engine     the model as an engine, to be measured against
"""
