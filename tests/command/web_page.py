"""What a web page can send to a server on this machine: requests with headers of a foreign origin."""

import base64
import json
from http.client import HTTPConnection


def ask(port: int, method: str, path: str, body: object = None, **headers: str) -> int:
    """The status of one request; `_` in a header's name is a hyphen."""
    connection = HTTPConnection("127.0.0.1", port, timeout=20)
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, json.dumps(body), {"Content-Type": "application/json", **sent})
    status = connection.getresponse().status
    connection.close()
    return status


def basic(password: str) -> str:
    return f"Basic {base64.b64encode(password.encode()).decode()}"


def refuses_web_pages(port: int, password: str) -> None:
    """A page of another origin, and one whose name was pointed at this machine, get no further than the door."""
    foreign = {"Origin": "http://evil.example", "Host": f"evil.example:{port}"}
    preflight = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "content-type"}
    assert ask(port, "OPTIONS", "/api/deployments/", **foreign, **preflight) == 400
    assert ask(port, "OPTIONS", "/api/deployments/", Origin=f"http://127.0.0.1:{port}", **preflight) == 200
    assert ask(port, "POST", "/api/flows/", {"name": "evil"}, **foreign) == 401
    assert ask(port, "POST", "/api/flows/", {"name": "evil"}, Authorization=basic("tuneline:guess"), **foreign) == 401
    assert ask(port, "POST", "/api/artifacts/filter", {}) == 401
    assert ask(port, "POST", "/api/flows/", {"name": "good"}, Authorization=basic(password)) == 201
    assert ask(port, "GET", "/api/health") == 200
