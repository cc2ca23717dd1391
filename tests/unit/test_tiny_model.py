"""The tiny model of the other tests is what they take it for."""

from pathlib import Path


def test_tiny_model_loads_and_its_tokenizer_round_trips_any_text(tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "caf\u00e9 12"}], tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer(text, return_tensors="pt").input_ids
    assert tokenizer.decode(ids[0]) == text == "<|im_start|>user\ncaf\u00e9 12<|im_end|>\n<|im_start|>assistant\n"
    assert model(ids).logits.shape == (1, ids.shape[1], model.config.vocab_size)
    assert (
        model.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>") == tokenizer.eos_token_id
    )
