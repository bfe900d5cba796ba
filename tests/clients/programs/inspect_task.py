"""A task for Inspect: an echo, a tool round trip, and thinking."""

from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import includes
from inspect_ai.solver import generate, use_tools
from inspect_ai.tool import Tool, tool


@tool
def weather() -> Tool:
    async def execute(city: str) -> str:
        """The weather of a city.

        Args:
            city: The city.
        """
        return f"sunny in {city}"

    return execute


@task
def habits() -> Task:
    samples = [
        Sample(input="hello there", target="hello there"),
        Sample(input='call:weather {"city":"Kyoto"}', target="result: sunny in Kyoto"),
        Sample(input="reason:hmm so", target="so"),
    ]
    return Task(dataset=samples, solver=[use_tools(weather()), generate()], scorer=includes())
