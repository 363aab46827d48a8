"""Mistyped and contradictory flags: one line that names the right one, exit code 2."""

import pytest

from preftune.cli.main import main

MODEL = "--model_id_or_path m"
BASE = f"{MODEL} --dataset a.jsonl"
PPO = f"ppo {BASE} --reward_model r"

# words after `preftune`, and what the line must say
MISTYPED = [
    (f"rlhf {BASE} --rlhf_tpye simpo", "did you mean '--rlhf_type'"),
    (f"rlhf {BASE} --bata 2", "did you mean '--beta'"),
    (f"rlhf {BASE} --simpo_gama 1", "did you mean '--simpo_gamma'"),
    (f"rlhf {BASE} --cpo_alhpa 1", "did you mean '--cpo_alpha'"),
    (f"rlhf {BASE} --rpo_alfa 1", "did you mean '--rpo_alpha'"),
    (f"rlhf {BASE} --desireable_weight 1", "did you mean '--desirable_weight'"),
    (f"rlhf {BASE} --model_typ llama3-8b-instruct", "did you mean '--model_type'"),
    (f"rlhf {BASE} --sft-typ lora", "did you mean '--sft_type'"),
    (f"rlhf {MODEL} --datset a.jsonl", "did you mean '--dataset'"),
    (f"rlhf {BASE} --val_datset a.jsonl", "did you mean '--val_dataset'"),
    (f"rlhf {BASE} --dataset_test_ration 0.1", "did you mean '--dataset_test_ratio'"),
    (f"rlhf {BASE} --lora_target_module ALL", "did you mean '--lora_target_modules'"),
    (f"rlhf {BASE} --lora_ranks 8", "did you mean '--lora_rank'"),
    (f"rlhf {BASE} --gradient_checkpoint true", "did you mean '--gradient_checkpointing'"),
    (f"rlhf {BASE} --gradient_acumulation_steps 2", "did you mean '--gradient_accumulation_steps'"),
    (f"rlhf {BASE} --batchsize 2", "did you mean '--batch_size'"),
    (f"rlhf {BASE} --learing_rate 1e-6", "did you mean '--learning_rate'"),
    (f"rlhf {BASE} --warmup_ration 0.1", "did you mean '--warmup_ratio'"),
    (f"rlhf {BASE} --save_total_limits 2", "did you mean '--save_total_limit'"),
    (f"rlhf {BASE} --max_lenght 512", "did you mean '--max_length'"),
    (f"rlhf {BASE} --truncation_stratgy delete", "did you mean '--truncation_strategy'"),
    (f"rlhf {BASE} --check_model_is_lastest false", "did you mean '--check_model_is_latest'"),
    (f"rlhf {BASE} --quantisation_bit 4", "did you mean '--quantization_bit'"),
    (f"rlhf {BASE} --deepsped default-zero3", "did you mean '--deepspeed'"),
    (f"rlhf {BASE} --use_flash_atn true", "did you mean '--use_flash_attn'"),
    (f"rlhf {BASE} --xyzzy 1", "See preftune rlhf --help"),
    (f"rlhf {BASE} --rlhf_type simp", "did you mean 'simpo'"),
    (f"rlhf {BASE} --rlhf_type grpo", "Accepted are simpo, dpo, kto, cpo, orpo, rm"),
    ("rlhf --dataset a.jsonl --model_type llama3-8b-instuct", "did you mean 'llama3-8b-instruct'"),
    ("rlhf --dataset a.jsonl --model_type my-own-model", "give --model_id_or_path"),
    (f"rlhf {BASE} --sft_type fulll", "did you mean 'full'"),
    (f"rlhf {BASE} --dtype bf17", "'torch_dtype' must be one of"),
    (f"rlhf {BASE} --lr_scheduler_type cosin", "did you mean 'cosine'"),
    (f"rlhf {BASE} --truncation_strategy delte", "must be one of"),
    (f"rlhf {BASE} --deepspeed default-zero4", "did you mean 'default-zero"),
    (f"rlhf {BASE} --rlhf_type dpo --loss_type sigmod", "one of sigmoid, hinge"),
]  # fmt: skip
FROM_MEMORY = [
    (f"rlhf {BASE} --lr 1e-6", "did you mean '--learning_rate'"),
    (f"rlhf {BASE} --epochs 3", "did you mean '--num_train_epochs'"),
    (f"rlhf {BASE} --num_epochs 3", "did you mean '--num_train_epochs'"),
    (f"orpo {BASE} --lambda 0.1", "did you mean '--beta'"),
    (f"orpo {BASE} --orpo_lambda 0.1", "did you mean '--beta'"),
    (f"rlhf {BASE} --grad_accum 4", "did you mean '--gradient_accumulation_steps'"),
    (f"rlhf {BASE} --use_lora true", "did you mean '--sft_type'"),
    (f"rlhf {BASE} --scheduler cosine", "did you mean '--lr_scheduler_type'"),
    (f"rlhf {BASE} --cutoff_len 512", "did you mean '--max_length'"),
    (f"rlhf {BASE} --method simpo", "did you mean '--rlhf_type'"),
]
WRONG_VALUES = [
    (f"simpo {BASE} beta=2", "--dataset: 'beta=2' is no value of it. Write a flag as --beta VALUE"),
    (f"simpo {BASE} —beta 2", "'—beta' starts with a long dash, as web pages print it. Write --beta"),
    (f"simpo {BASE} –beta 2", "Write --beta"),
    (f"simpo {BASE} --template_type lama3", "'lama3' is no template's name, file or Jinja text; did you mean 'llama3'"),
    (f"rlhf {BASE} --beta", "--beta has no value"),
    (f"rlhf {BASE} --dataset_test_ratio", "--dataset_test_ratio has no value"),
    (f"rlhf {MODEL} --dataset", "--dataset has no value"),
    (f"rlhf {BASE} --beta two --rlhf_type simpo", "--beta: 'beta' must be a number"),
    (f"rlhf {BASE} --lora_rank 0", "--lora_rank: 'lora_r' must be at least 1"),
    (f"rlhf {BASE} --batch_size 0", "--batch_size: 'per_device_train_batch_size' must be at least 1"),
    (f"rlhf {BASE} --batch_size many", "--batch_size must be a whole number"),
    (f"rlhf {BASE} --gradient_checkpointing maybe", "must be true or false"),
    (f"rlhf {BASE} --dataset_test_ratio 1.5", "--dataset_test_ratio must be at least 0 and below 1"),
    (f"rlhf {BASE} --warmup_ratio 1.5", "'warmup_ratio' must be at least 0 and below 1"),
    (f"rlhf {BASE} --quantization_bit 3", "--quantization_bit must be 0, 4 or 8"),
    (f"rlhf {BASE} --quant_method awq", "quantised by bnb"),
    (f"rlhf {BASE} --max_length 1", "--max_length: 'max_length' must be at least 2"),
    (f"rlhf {BASE} --beta 1 2", "--beta takes one value"),
    (f"rlhf {BASE} --dry_run maybe", "--dry_run must be true or false"),
    (f"rlhf {BASE} -beta 2", "flags start with two dashes: --beta"),
    (f"rlhf simpo {BASE}", "expected --FLAG VALUE, found 'simpo'"),
    (f"rlhf no-such-file.yaml {BASE}", "there is no such file"),
    (f"rlhf {BASE} --custom_dataset_info no.json", "there is no file 'no.json'"),
    (f"rlhf {BASE} --system no.txt", "there is no file 'no.txt'"),
    (f"rlhf {BASE} --deepspeed no.json", "there is no file 'no.json'"),
    ("rlhf --dataset a.jsonl", "Give --model_type NAME or --model_id_or_path FOLDER"),
    (f"rlhf {MODEL}", "Give --dataset NAME"),
]  # fmt: skip
CONTRADICTIONS = [
    (f"simpo {BASE} --rlhf_type dpo", "the verb 'simpo' disagree"),
    (f"simpo {BASE} --rpo_alpha 0.1", "for simpo write --cpo_alpha"),
    (f"dpo {BASE} --cpo_alpha 0.1", "for dpo write --rpo_alpha"),
    (f"ipo {BASE} --rpo_alpha 0.1", "for ipo write --sft_weight"),
    (f"dpo {BASE} --simpo_gamma 1", "--simpo_gamma is a flag of simpo"),
    (f"cpo {BASE} --simpo_gamma 1", "--simpo_gamma is a flag of simpo"),
    (f"simpo {BASE} --desirable_weight 2", "--desirable_weight is a flag of kto"),
    (f"simpo {BASE} --cpo_alpha 0 --sft_weight 1", "disagree"),
    (f"simpo {BASE} --simpo_gamma 1 --gamma_beta_ratio 0.1", "disagree"),
    (f"simpo {BASE} --beta 2 --beta 3", "--beta is given twice (2 and 3)"),
    (f"simpo {BASE} --batch_size 2 --per_device_train_batch_size 4", "--batch_size 2 and --per_device"),
    (f"simpo {BASE} --ref_model_id_or_path r", "has no effect: simpo has no reference model"),
    (f"orpo {BASE} --ref_model_type qwen2-7b", "has no effect: orpo has no reference model"),
    (f"dpo {BASE} --ref_model_revision v2", "reference_model_name_or_path is not set"),
    (f"simpo {BASE} --sft_type full --lora_rank 8", "--lora_rank 8 is for adapters, but --sft_type is full"),
    (f"simpo {BASE} --sft_type full --quantization_bit 4", "--quantization_bit 4 is for adapters"),
    (f"simpo {BASE} --freeze_parameters embeddings", "--freeze_parameters is for --sft_type full"),
    (f"simpo {BASE} --adapters mine --lora_rank 8", "--adapters brings its own settings"),
    (f"simpo {BASE} --sft_type longlora", "longlora is not supported: adapters are LoRA"),
    (f"simpo {BASE} --eval_steps 5 --dataset_test_ratio 0", "needs data, but --dataset_test_ratio is 0"),
    (f"simpo {BASE} --use_flash_attn true --attn_impl sdpa", "both choose the attention"),
    (f"simpo {BASE} --bnb_4bit_quant_type fp4", "has no effect: load_in_4bit is false"),
    (f"rm {BASE} --quantization_bit 4", "trains a value head over dense weights"),
    (f"rm {BASE} --beta 0.1", "'beta' is a key of"),
    (f"kto {BASE} --loss_type apo_zero_unpaired", "apo_zero trains on pairs"),
    (f"cpo {BASE} --loss_type ipo", "set objective: ipo"),
    (f"dpo {BASE} --loss_type sigmoid ipo --loss_weights 1", "one weight for each of 2 losses"),
    (f"dpo {BASE} --loss_type sigmoid hinge", "holds dpo twice"),
    (f"simpo {BASE} --kl_coef 0.1", "--kl_coef is a flag of ppo; --rlhf_type is simpo. Leave it out"),
    (f"dpo {BASE} --gamma 1", "--gamma is a flag of ppo and simpo"),
    (f"simpo {BASE} --gamma 1 --simpo_gamma 2", "disagree"),
    (f"ppo {BASE}", "ppo needs a reward"),
    (f"{PPO} --kl_coeff 0.1", "did you mean '--kl_coef'"),
    (f"{PPO} --whiten_reward true", "did you mean '--whiten_rewards'"),
    (f"{PPO} --num_ppo_epoch 2", "did you mean '--num_ppo_epochs'"),
    (f"{PPO} --cliprange 1.5", "--cliprange: 'cliprange' must be a number above 0 and below 1"),
    (f"{PPO} --gamma 0", "--gamma: 'gamma' must be a number above 0, up to 1"),
    (f"{PPO} --lam 1.1", "--lam: 'lam' must be a number from 0 to 1"),
    (f"{PPO} --temperature 0", "--temperature: 'temperature' must be a number above 0"),
    (f"{PPO} --num_mini_batches 0", "--num_mini_batches: 'num_mini_batches' must be a whole number of at least 1"),
    (f"{PPO} --simpo_gamma 1", "--simpo_gamma is a flag of simpo"),
    (f"{PPO} --beta 0.1", "'beta' is a key of"),
    (f"{PPO} --reward_function a:b", "both say what a response is worth"),
    (f"ppo {BASE} --reward_function my_module", "'reward_function' must be module:function"),
    (f"ppo {BASE} --reward_function a:b --reward_model_revision v2", "reward_model_name_or_path is not set"),
    (f"{PPO} --response_length 100 --max_new_tokens 200", "--response_length 100 and --max_new_tokens 200"),
    (f"{PPO} --response_length 2048", "leaves no room for a prompt"),
    (f"{PPO} --max_prompt_length 1600", "are together above 'max_length' 2048"),
    (f"{PPO} --deepspeed default-zero3", "'deepspeed' is not for ppo"),
    (f"{PPO} --push_to_hub true", "Upload the run folder"),
    (f"{PPO} --sft_weight 0.1", "ppo samples its own"),
    (f"{PPO} --disable_dropout false", "its ratios compare with log-probs without dropout"),
    (f"{PPO} --precompute_reference true", "'precompute_reference' true has no effect"),
    (f"simpo {BASE} --resume_only_model true", "name its folder with --model_id_or_path or --adapters"),
    (f"simpo {BASE} --bnb_4bit_comp_dtype bf16", "it is --dtype"),
    (f"simpo {BASE} --strict maybe", "--strict must be true or false"),
    (f"simpo {BASE} --streaming true", "--streaming: 'streaming' true needs max_steps"),
    (f"kto {BASE} --streaming true --max_steps 2", "'streaming' true is not for kto"),
    (f"simpo {BASE} --streaming true --max_steps 2 --dataset_test_ratio 0.1", "name --val_dataset in its place"),
    (f"simpo {BASE} --streaming true --max_steps 2 --eval_steps 2", "held out of a stream. Name --val_dataset"),
    (f"simpo {BASE} --streaming_buffer_size 64", "has no effect: streaming is false"),
    (f"simpo {BASE} --streaming true --max_steps 2 --preprocess_num_proc 4", "takes all rows at once"),
    (f"simpo {BASE} --device_map_config x.json", "'x.json' is neither auto nor a JSON file"),
    (f"simpo {BASE} --device_map auto --deepspeed default-zero2", "does not go with deepspeed. Leave one of them out"),
    (f"simpo {BASE} --warmup_ratio 0.1 --warmup_steps 10", "disagree"),
    (f"simpo {BASE} --total_batch_size 10 --batch_size 4", "is not a multiple of"),
    (f"simpo {BASE} --bf16 true --dtype fp16", "disagree"),
    (f"simpo {BASE} --quantization_bit 4 --load_in_8bit true", "--quantization_bit 4 and --load_in_8bit true disagree"),
]  # fmt: skip
CASES = [*MISTYPED, *FROM_MEMORY, *WRONG_VALUES, *CONTRADICTIONS]


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in ("NPROC_PER_NODE", "NNODES", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def test_there_are_at_least_sixty_cases():
    assert len(CASES) >= 60


@pytest.mark.parametrize(("line", "said"), CASES, ids=[f"{n}-{line.split()[-2]}" for n, (line, _) in enumerate(CASES)])
def test_a_wrong_flag_is_one_line_and_exit_code_2(line, said, capsys):
    assert main([*line.split(), *([] if "dry_run" in line else ["--dry_run", "true"])]) == 2
    error = [text for text in capsys.readouterr().err.splitlines() if text.startswith(("RecipeError", "DataError"))]
    assert len(error) == 1
    assert said in error[0]
