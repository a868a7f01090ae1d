"""The HTTP server: bundles behind the Open Inference Protocol and routes for people."""

from limbeck.serving.app import create_app
from limbeck.serving.run import serve
from limbeck.serving.settings import Limits, Settings, named_bundles

__all__ = ["Limits", "Settings", "create_app", "named_bundles", "serve"]
