"""A nightly job: a label for each ticket of the day. ``python examples/nightly.py``, with ``make dev`` running.

Killed and begun again on the same day, it goes on with the batch that is there: no ticket is sent, or paid, twice.
"""

import os
import sys
from datetime import date

from openai import OpenAI

from api.client import BatchClient, Result

TICKETS = {
    "ticket-4101": "I was charged twice for my March invoice and need one of the payments back.",
    "ticket-4102": "The export button does nothing, the console says 'undefined is not a function'.",
    "ticket-4103": "Could you add a dark mode? My eyes hurt after the night shift.",
}
TASK = "Answer with one of: billing, bug, feature, account."


def label(tickets: dict[str, str]) -> dict[str, Result]:
    openai = OpenAI(base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"), api_key="none")
    with BatchClient(openai, on_retry=lambda error: print(f"waiting: {error}", file=sys.stderr)) as client:
        model = next(iter(openai.models.list())).id
        requests = (
            (ticket, {"model": model, "messages": [{"role": "user", "content": f"{TASK}\n{text}"}]})
            for ticket, text in tickets.items()
        )
        return client.run(requests, "/v1/chat/completions", idempotency_key=f"tickets-{date.today()}")


def main() -> int:
    results = label(TICKETS)
    for ticket, result in results.items():
        print(f"{ticket}: {result.text if result.ok else f'{result.error_code}: {result.error_message}'}")
    return 0 if all(result.ok for result in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
