"""A conversation, and chat templates that write it."""

BY_PREFIX = (
    "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
BY_BLOCK = (
    "{% for message in messages %}[{{ message['role'] }}]{% if message['role'] == 'assistant' %}{% generation %} "
    "{{ message['content'] }}{{ eos_token }}{% endgeneration %}{% else %} {{ message['content'] }}{% endif %}"
    "{{ '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
STRICT = (  # as Gemma's and Mistral's: no system's message, user and assistant in turn
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}{% endfor %}" + BY_PREFIX
)
WITHOUT_EOS = BY_PREFIX.replace("{{ eos_token }}", "")
CONVERSATION = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Who speaks?"},
        {"role": "assistant", "content": "The President of the United States."},
        {"role": "user", "content": "To whom?"},
        {"role": "assistant", "content": "The Congress."},
    ]
}
