"""What the engine tells of itself is taken where it is something, and else left out."""

from aiohttp import web

from sekisho.evaluate.client.target import Target
from sekisho.evaluate.environment import engine


async def test_a_version_that_is_no_utf8_is_passed_over() -> None:
    """The next address is asked; the evaluation goes on."""

    async def latin1(_request: web.Request) -> web.Response:
        return web.Response(body=b'{"version": "caf\xe9"}', content_type="application/json")

    async def told(_request: web.Request) -> web.Response:
        return web.json_response({"version": "1.2"})

    application = web.Application()
    application.router.add_get("/version", latin1)
    application.router.add_get("/api/version", told)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        target = Target("engine", f"http://127.0.0.1:{runner.addresses[0][1]}", "m")
        assert ("engine version", "1.2") in (await engine((target,), None)).rows
    finally:
        await runner.cleanup()
