import tempfile

from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import BatchConfig, GenerateConfig, get_model


def run(base_url, model, prompts):
    batch = BatchConfig(size=len(prompts), tick=0.3, send_delay=1)
    config = GenerateConfig(batch=batch, max_retries=0)
    language_model = get_model(
        f"openai/{model}", base_url=base_url, api_key="none", responses_api=False, config=config, memoize=False
    )
    task = Task(dataset=[Sample(id=number, input=prompt) for number, prompt in enumerate(prompts, 1)])
    with tempfile.TemporaryDirectory() as folder:
        (log,) = eval(task, model=language_model, display="none", log_dir=folder)
        if log.status != "success":
            raise RuntimeError(log.error.message if log.error else log.status)
        texts = {sample.id: sample.output.completion for sample in log.samples}
    return [texts.get(number) for number in range(1, len(prompts) + 1)]
