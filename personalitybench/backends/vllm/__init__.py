"""The fast path: vLLM with edits and counts of gate activations, as a plug-in that is inert unless asked for.

vLLM loads :mod:`~personalitybench.backends.vllm.plugin` in all its processes. ``load_format=personalitybench`` then
loads a model whose MLPs call one custom op (``gates``); before every forward pass the ``router`` says token by token
what that op is to do. ``docs/vllm.md`` tells how the parts work together.
"""
