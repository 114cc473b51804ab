"""Everything that the plug-in relies on in vLLM, and a command that compares it with a wheel or a folder.

``python -m personalitybench.backends.vllm.interface PATH``; reads sources, imports neither vLLM nor torch.
"""

from __future__ import annotations

from personalitybench.backends.vllm.interface_check import (
    Absent,
    Attributes,
    Contains,
    Inherited,
    Name,
    Requirement,
    Signature,
    main,
)

_LOADERS = "vllm.model_executor.model_loader"
_BASE_LOADER = f"{_LOADERS}.base_loader:BaseModelLoader"
_LAYERS = "vllm.model_executor.layers"
_MODELS = "vllm.model_executor.models"
_CORE = "vllm.v1.engine.core"
_LLM_ENGINE = "vllm.v1.engine.llm_engine:LLMEngine"
_ASYNC_LLM = "vllm.v1.engine.async_llm:AsyncLLM"
_PUNICA = "vllm.lora.punica_wrapper.punica_cpu:PunicaWrapperCPU"
_RUNNER_V1 = "vllm.v1.worker.gpu_model_runner:GPUModelRunner"
_RUNNER_V2 = "vllm.v1.worker.gpu.model_runner:GPUModelRunner"
_STATE = "vllm.v1.worker.gpu.model_states.default:DefaultModelState"
_STATE_HOOK = "get_model_state_cls"

_NO_LOADER = "load_format=personalitybench cannot load a model"
_NO_CHECK = "requests reach the engine unchecked"
_NO_OUTPUT = "the canary and identification cannot read answers"
_NO_SPAN = "edits meet the tokens of other requests"
_NO_LORA = "adapters are refused or wrong"
_NO_MODEL = "the model type personalitybench-vllm cannot be loaded or asked"
_NO_ROOM = "the plug-in cannot keep attributes of its own there"
_NO_CACHE_KEY = "the prefix cache mixes answers that are steered or counted differently"

_LOADING: tuple[Requirement, ...] = (
    Contains("vllm.plugins", "plugin.py", "vLLM does not load the plug-in", ("'vllm.general_plugins'",)),
    Signature(f"{_LOADERS}:register_model_loader", "plugin.py", _NO_LOADER, "load_format"),
    Name(f"{_LOADERS}:BaseModelLoader", "plugin.py", _NO_LOADER),
    Signature(f"{_LOADERS}:get_model_loader", "loader.py", _NO_LOADER, "load_config"),
    Contains(
        f"{_LOADERS}:get_model_loader",
        "plugin.py",
        "the registered loader is called with other arguments",
        ("_LOAD_FORMAT_TO_MODEL_LOADER[load_format](load_config)",),
    ),
    Signature(_BASE_LOADER, "loader.py", _NO_LOADER, "load_config"),
    Attributes(_BASE_LOADER, "loader.py", _NO_LOADER, "load_config"),
    Signature(
        f"{_BASE_LOADER}.load_model",
        "loader.py",
        "the model is loaded without the op",
        "vllm_config model_config prefix",
        exact=True,
    ),
    Signature(f"{_BASE_LOADER}.download_model", "plugin.py loader.py", _NO_LOADER, "model_config", exact=True),
    Signature(f"{_BASE_LOADER}.load_weights", "plugin.py loader.py", _NO_LOADER, "model model_config", exact=True),
    Attributes("vllm.config.load:LoadConfig", "loader.py requests.py", _NO_LOADER, "load_format"),
    Attributes(
        "vllm.config:VllmConfig",
        "loader.py",
        "options and refused features cannot be read",
        "additional_config parallel_config scheduler_config speculative_config",
    ),
    Attributes("vllm.config:VllmConfig", "adapters.py requests.py", _NO_CHECK, "model_config"),
    Attributes("vllm.config:VllmConfig", "requests.py", _NO_CHECK, "load_config"),
    Attributes("vllm.config:VllmConfig", "adapters.py", _NO_LORA, "lora_config"),
    Attributes("vllm.config:VllmConfig", "seams.py", "the model runner is unknown", "use_v2_model_runner"),
    Contains(
        "vllm.config:VllmConfig.compute_hash",
        "loader.py",
        "a model compiled without the op is taken for one with it",
        ("self.additional_config",),
    ),
    Attributes(
        "vllm.config:ModelConfig",
        "loader.py adapters.py requests.py",
        "layers and neurons of the model are unknown",
        "hf_text_config",
    ),
    Attributes(
        "vllm.config:ParallelConfig",
        "loader.py",
        "a feature that moves tokens is not refused",
        "tensor_parallel_size data_parallel_size pipeline_parallel_size decode_context_parallel_size "
        "prefill_context_parallel_size use_ubatching",
    ),
    Attributes("vllm.config:SchedulerConfig", "loader.py", "the buffers have no size", "max_num_batched_tokens"),
    Signature("vllm.distributed:get_tensor_model_parallel_rank", "loader.py", "a device edits neurons of another"),
    Signature(
        f"{_MODELS}.interfaces:SupportsMultiModal.get_language_model",
        "loader.py",
        "layers of a vision tower are taken for those of the decoder",
    ),
)

_ACTIVATIONS: tuple[Requirement, ...] = (
    Name(f"{_LAYERS}.activation:SiluAndMul", "gates.py", "the activation is not recognised"),
    Attributes(f"{_LAYERS}.activation:GeluAndMul", "gates.py", "the activation is not recognised", "approximate"),
    Contains(
        f"{_LAYERS}.activation", "gates.py", "Gemma-3 has another activation", ("GeluAndMul(approximate='tanh')",)
    ),
    Attributes(
        f"{_LAYERS}.linear:MergedColumnParallelLinear",
        "gates.py",
        "the width of the MLP is not compared with the configuration",
        "output_size_per_partition",
    ),
    Contains(
        f"{_LAYERS}.fusion.fused_act_quant:maybe_fused_act_quant",
        "gates.py",
        "quantised models bypass the op",
        ("type(act_fn)", "act_fn(x)"),
    ),
    Name("vllm.triton_utils:triton", "kernel.py", "the kernels cannot be compiled"),
    Name("vllm.triton_utils:tl", "kernel.py", "the kernels cannot be compiled"),
)


def _mlp(module: str, mlp: str, layer: str, activation: str) -> tuple[Requirement, ...]:
    """Requirements of an MLP: a layer has it as ``mlp``; it calls ``act_fn`` on the output of ``gate_up_proj``."""
    reason = f"{mlp} cannot be steered"
    return (
        Attributes(f"{_MODELS}.{module}:{mlp}", "gates.py", reason, "act_fn gate_up_proj"),
        Contains(f"{_MODELS}.{module}:{mlp}.__init__", "gates.py", reason, (activation,)),
        Contains(f"{_MODELS}.{module}:{mlp}.forward", "gates.py", reason, ("self.act_fn", "self.gate_up_proj")),
        Contains(f"{_MODELS}.{module}:{layer}.__init__", "gates.py", reason, (mlp,)),
    )


def _family(module: str, layer: str, decoder: str, model: str) -> tuple[Requirement, ...]:
    """Requirements of a model class: its decoder's MLPs are named ``layers.N.mlp``, its model state is vLLM's."""
    reason = f"{model} cannot be steered"
    registered = f"{{'{model}': ('{module}', '{model}')}}"
    return (
        Contains(f"{_MODELS}.registry", "gates.py", reason, (registered,)),
        Attributes(f"{_MODELS}.{module}:{decoder}", "gates.py", reason, "layers"),
        Attributes(f"{_MODELS}.{module}:{layer}", "gates.py", reason, "mlp"),
        Absent(f"{_MODELS}.{module}:{model}", "seams.py", "a model state of its own is replaced", _STATE_HOOK),
    )


_FAMILIES: tuple[Requirement, ...] = (
    *_mlp("llama", "LlamaMLP", "LlamaDecoderLayer", "SiluAndMul()"),
    *_mlp("qwen2", "Qwen2MLP", "Qwen2DecoderLayer", "SiluAndMul()"),
    *_mlp("qwen3", "Qwen3MLP", "Qwen3DecoderLayer", "SiluAndMul()"),
    *_mlp("gemma2", "Gemma2MLP", "Gemma2DecoderLayer", "GeluAndMul(approximate='tanh')"),
    *_mlp("gemma3", "Gemma3MLP", "Gemma3DecoderLayer", "get_act_and_mul_fn(hidden_activation)"),
    *_family("llama", "LlamaDecoderLayer", "LlamaModel", "LlamaForCausalLM"),
    *_family("mistral", "MistralDecoderLayer", "MistralModel", "MistralForCausalLM"),
    *_family("qwen2", "Qwen2DecoderLayer", "Qwen2Model", "Qwen2ForCausalLM"),
    *_family("qwen3", "Qwen3DecoderLayer", "Qwen3Model", "Qwen3ForCausalLM"),
    *_family("gemma2", "Gemma2DecoderLayer", "Gemma2Model", "Gemma2ForCausalLM"),
    *_family("gemma3", "Gemma3DecoderLayer", "Gemma3Model", "Gemma3ForCausalLM"),
    Contains(
        f"{_MODELS}.registry",
        "gates.py",
        "Phi3ForCausalLM cannot be steered",
        ("{'Phi3ForCausalLM': ('phi3', 'Phi3ForCausalLM')}",),
    ),
    Absent(f"{_MODELS}.phi3:Phi3ForCausalLM", "seams.py", "a model state of its own is replaced", _STATE_HOOK),
    Contains(f"{_MODELS}.phi3", "gates.py", "Phi3ForCausalLM cannot be steered", ("LlamaForCausalLM",)),
    Attributes(
        f"{_MODELS}.gemma3_mm:Gemma3ForConditionalGeneration",
        "loader.py",
        "layers of a vision tower are taken for those of the decoder",
        "get_language_model",
    ),
)

_RUNNERS: tuple[Requirement, ...] = (
    # V1: the only model runner of the CPU build.
    Attributes(_RUNNER_V1, "seams.py", _NO_SPAN, "get_model input_batch query_start_loc requests"),
    Contains(f"{_RUNNER_V1}.execute_model", "seams.py", "nothing is edited", ("self._model_forward",)),
    Inherited(
        "vllm.v1.worker.cpu_model_runner:CPUModelRunner._model_forward",
        "seams.py",
        "nothing is edited on CPUs",
        "GPUModelRunner",
    ),
    Attributes("vllm.v1.worker.gpu_input_batch:InputBatch", "seams.py", _NO_SPAN, "req_ids num_computed_tokens_cpu"),
    Attributes(
        "vllm.v1.worker.gpu_input_batch:CachedRequestState", "seams.py", _NO_SPAN, "sampling_params num_prompt_tokens"
    ),
    Attributes("vllm.v1.utils:CpuGpuBuffer", "seams.py", _NO_SPAN, "np"),
    # V2: the model runner of GPUs.
    Contains(
        "vllm.v1.worker.gpu.model_states",
        "seams.py",
        "nothing is edited on GPUs",
        (f"hasattr(model, '{_STATE_HOOK}')", f"model.{_STATE_HOOK}()"),
    ),
    Contains(
        _RUNNER_V2,
        "model_state.py",
        "requests or steps are not announced",
        (
            "self.model_state.add_request(req_index, new_req_data)",
            "self.model_state.remove_request(req_id)",
            "self.model_state.prepare_inputs(input_batch, self.req_states)",
        ),
    ),
    Contains(
        f"{_RUNNER_V2}.finish_requests",
        "router.py",
        "a preempted request is counted twice",
        ("scheduler_output.preempted_req_ids",),
    ),
    Attributes(_RUNNER_V2, "worker.py", "counters cannot be read", "get_model"),
    Signature(f"{_STATE}.add_request", "model_state.py", _NO_SPAN, "req_index new_req_data", exact=True),
    Signature(f"{_STATE}.remove_request", "model_state.py", _NO_SPAN, "req_id", exact=True),
    Signature(f"{_STATE}.prepare_inputs", "model_state.py", _NO_SPAN, "input_batch req_states", exact=True),
    Attributes(_STATE, "model_state.py", "the plug-in's state cannot be reached", "model"),
    Attributes(
        "vllm.v1.core.sched.output:NewRequestData",
        "model_state.py",
        _NO_SPAN,
        "req_id sampling_params prompt_token_ids",
    ),
    Attributes(
        "vllm.v1.worker.gpu.input_batch:InputBatch",
        "model_state.py",
        _NO_SPAN,
        "req_ids query_start_loc_np num_computed_tokens_np",
    ),
    Name("vllm.v1.worker.gpu.states:RequestState", "model_state.py", "the model state cannot be imported"),
    # Workers of both.
    Signature("vllm.utils.import_utils:resolve_obj_by_qualname", "seams.py", "counters cannot be read", "qualname"),
    Attributes("vllm.config:ParallelConfig", "seams.py", "counters cannot be read", "worker_cls"),
    Contains(
        "vllm.v1.worker.worker_base:WorkerWrapperBase.init_worker",
        "seams.py",
        "counters cannot be read",
        ("resolve_obj_by_qualname(parallel_config.worker_cls)", "worker_class.__bases__"),
    ),
    Attributes("vllm.v1.worker.gpu_worker:Worker", "worker.py", "counters cannot be read", "model_runner"),
    Attributes("vllm.v1.worker.cpu_worker:CPUWorker", "worker.py", "counters cannot be read", "model_runner"),
)

_REQUESTS: tuple[Requirement, ...] = (
    Signature(
        f"{_LLM_ENGINE}.add_request",
        "plugin.py requests.py adapters.py identification.py",
        _NO_CHECK,
        "request_id prompt params",
        "lora_request",
    ),
    Signature(
        f"{_ASYNC_LLM}.add_request",
        "plugin.py requests.py adapters.py",
        _NO_CHECK,
        "request_id prompt params",
        "lora_request",
    ),
    Contains(
        "vllm.entrypoints.common.offline:OfflineInferenceMixin._add_request",
        "plugin.py",
        _NO_CHECK,
        ("self.llm_engine.add_request",),
    ),
    Contains(f"{_ASYNC_LLM}.generate", "plugin.py", _NO_CHECK, ("self.add_request",)),
    Attributes(_LLM_ENGINE, "requests.py", _NO_CHECK, "output_processor vllm_config"),
    Attributes(_ASYNC_LLM, "requests.py", _NO_CHECK, "output_processor vllm_config"),
    Absent(_LLM_ENGINE, "requests.py adapters.py", _NO_ROOM, "__slots__"),
    Absent(_ASYNC_LLM, "requests.py adapters.py", _NO_ROOM, "__slots__"),
    Absent("vllm.v1.request:Request", "requests.py", _NO_ROOM, "__slots__"),
    Attributes(
        "vllm.v1.engine.output_processor:OutputProcessor",
        "requests.py",
        "finished requests hold slots for ever",
        "external_req_ids",
    ),
    Signature(
        f"{_CORE}:EngineCore.preprocess_add_request", "plugin.py requests.py", _NO_CACHE_KEY, "request", exact=True
    ),
    Contains(
        f"{_CORE}:EngineCore.preprocess_add_request", "requests.py", _NO_CACHE_KEY, ("self.request_block_hasher",)
    ),
    Inherited(f"{_CORE}:EngineCoreProc.preprocess_add_request", "plugin.py", _NO_CACHE_KEY, "EngineCore"),
    Inherited(f"{_CORE}:DPEngineCoreProc.preprocess_add_request", "plugin.py", _NO_CACHE_KEY, "EngineCore"),
    Contains(f"{_CORE}:EngineCoreProc", "plugin.py", _NO_CACHE_KEY, ("self.preprocess_add_request",)),
    Contains(
        "vllm.v1.engine.core_client:InprocClient",
        "plugin.py",
        _NO_CACHE_KEY,
        ("self.engine_core.preprocess_add_request",),
    ),
    Attributes(f"{_CORE}:EngineCore", "requests.py", _NO_CACHE_KEY, "request_block_hasher scheduler vllm_config"),
    Attributes("vllm.v1.core.sched.scheduler:Scheduler", "requests.py", _NO_CACHE_KEY, "hash_block_size"),
    Attributes(
        "vllm.v1.engine:EngineCoreRequest",
        "requests.py",
        _NO_CACHE_KEY,
        "cache_salt lora_request prompt_token_ids sampling_params",
    ),
    Attributes(
        "vllm.v1.request:Request", "requests.py", _NO_CACHE_KEY, "block_hashes num_prompt_tokens sampling_params"
    ),
    Contains(
        "vllm.v1.core.kv_cache_utils",
        "requests.py adapters.py",
        _NO_CACHE_KEY,
        ("request.cache_salt", "lora_request.lora_name", "request.block_hashes"),
    ),
    Signature(
        "vllm:SamplingParams",
        "canary.py identification.py",
        _NO_OUTPUT,
        keyword="temperature max_tokens logprobs repetition_penalty detokenize skip_reading_prefix_cache extra_args",
    ),
    Attributes("vllm:SamplingParams", "plugin.py requests.py seams.py", _NO_CHECK, "extra_args"),
)

_ANSWERS: tuple[Requirement, ...] = (
    Signature("vllm:LLM", "identification.py", "no engine starts", "model"),
    Signature(
        "vllm.engine.arg_utils:EngineArgs",
        "engine.py identification.py",
        "no engine starts",
        keyword="additional_config async_scheduling block_size enable_lora enforce_eager gpu_memory_utilization "
        "load_format max_lora_rank max_loras max_num_seqs",
    ),
    Attributes("vllm:LLM", "identification.py", _NO_OUTPUT, "llm_engine"),
    Signature("vllm:LLM.get_tokenizer", "identification.py", _NO_OUTPUT),
    Signature("vllm:LLM.collective_rpc", "canary.py identification.py", "no counters", "method", "args"),
    Signature("vllm:LLM.generate", "canary.py", _NO_OUTPUT, "prompts sampling_params", "use_tqdm"),
    Signature(f"{_LLM_ENGINE}.has_unfinished_requests", "identification.py", _NO_OUTPUT),
    Signature(f"{_LLM_ENGINE}.step", "identification.py", _NO_OUTPUT),
    Signature(f"{_LLM_ENGINE}.abort_request", "identification.py", _NO_OUTPUT, "request_ids"),
    Signature("vllm:TokensPrompt", "canary.py identification.py", _NO_OUTPUT, keyword="prompt_token_ids"),
    Attributes("vllm:RequestOutput", "identification.py", _NO_OUTPUT, "finished outputs prompt_token_ids request_id"),
    Attributes("vllm:RequestOutput", "canary.py", _NO_OUTPUT, "lora_request"),
    Attributes("vllm:CompletionOutput", "canary.py", _NO_OUTPUT, "finish_reason logprobs stop_reason"),
    Attributes("vllm:CompletionOutput", "identification.py", _NO_OUTPUT, "text"),
    Attributes("vllm:CompletionOutput", "canary.py identification.py model.py", _NO_OUTPUT, "token_ids"),
    Attributes("vllm.logprobs:Logprob", "canary.py", _NO_OUTPUT, "logprob"),
)

_ADAPTERS: tuple[Requirement, ...] = (
    Signature("vllm.lora.request:LoRARequest", "adapters.py", _NO_LORA, "lora_name lora_int_id lora_path"),
    Attributes("vllm.lora.request:LoRARequest", "adapters.py canary.py", _NO_LORA, "lora_name"),
    Signature("vllm.lora.peft_helper:PEFTHelper.from_dict", "adapters.py", _NO_LORA, "config_dict"),
    Signature("vllm.lora.peft_helper:PEFTHelper.validate_legal", "adapters.py", _NO_LORA, "lora_config"),
    Attributes("vllm.config.lora:LoRAConfig", "adapters.py", _NO_LORA, "max_lora_rank target_modules"),
    # Products on CPUs.
    Name("vllm.platforms:current_platform", "plugin.py engine.py versions.py", "no platform is known"),
    Attributes("vllm.platforms:Platform", "plugin.py engine.py", "no platform is known", "is_cpu"),
    Attributes("vllm.platforms:Platform", "versions.py", "no platform is known", "device_type"),
    Signature("vllm.platforms.cpu:CpuPlatform.get_punica_wrapper", "plugin.py", _NO_LORA, exact=True),
    Contains(
        "vllm.lora.punica_wrapper.punica_selector:get_punica_wrapper",
        "plugin.py",
        _NO_LORA,
        ("current_platform.get_punica_wrapper()",),
    ),
    Attributes(_PUNICA, "punica.py", _NO_LORA, "update_metadata token_lora_indices sampler_indices"),
    Signature(f"{_PUNICA}._apply_shrink", "punica.py", _NO_LORA, "y x w_t_all scale", exact=True),
    Signature(
        f"{_PUNICA}._apply_expand", "punica.py", _NO_LORA, "y x w_t_all y_offset y_slice_size add_inputs", exact=True
    ),
    Contains(f"{_PUNICA}.add_shrink", "punica.py", _NO_LORA, ("self._apply_shrink",)),
    Contains(f"{_PUNICA}.add_expand", "punica.py", _NO_LORA, ("self._apply_expand",)),
    Signature(
        f"{_PUNICA}.add_lora_linear",
        "punica.py",
        _NO_LORA,
        "y x lora_a_stacked lora_b_stacked scale output_slices",
        "buffer",
        exact=True,
    ),
    Signature(f"{_PUNICA}.add_lora_embedding", "punica.py", _NO_LORA, "y x lora_b_stacked add_inputs", exact=True),
    Signature(
        f"{_PUNICA}.add_lora_logits",
        "punica.py",
        _NO_LORA,
        "y x lora_a_stacked lora_b_stacked scale",
        "buffer",
        exact=True,
    ),
)

# Imports and calls of lm-eval's own vLLM model, on which personalitybench-vllm is built.
_LM_EVAL: tuple[Requirement, ...] = (
    Signature(
        "vllm.renderers.hf:resolve_chat_template",
        "lm-eval",
        _NO_MODEL,
        keyword="tokenizer chat_template tools model_config",
    ),
    Signature("vllm.tokenizers:get_tokenizer", "lm-eval", _NO_MODEL, "tokenizer_name", "trust_remote_code revision"),
    Attributes(_LLM_ENGINE, "lm-eval", _NO_MODEL, "model_config"),
    Signature("vllm:LLM.generate", "lm-eval", _NO_MODEL, "prompts", "sampling_params use_tqdm lora_request"),
    Signature(
        "vllm:SamplingParams",
        "lm-eval",
        _NO_MODEL,
        keyword="temperature max_tokens stop prompt_logprobs detokenize skip_special_tokens "
        "spaces_between_special_tokens",
    ),
    Attributes("vllm:RequestOutput", "lm-eval", _NO_MODEL, "prompt_logprobs"),
)

INTERFACE: tuple[Requirement, ...] = (
    *_LOADING,
    *_ACTIVATIONS,
    *_FAMILIES,
    *_RUNNERS,
    *_REQUESTS,
    *_ANSWERS,
    *_ADAPTERS,
    *_LM_EVAL,
)
"""All of it; each line of a report names the file of vLLM, the difference, our files and the consequence."""


if __name__ == "__main__":
    raise SystemExit(main(INTERFACE))
