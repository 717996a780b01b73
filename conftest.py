"""For nbval, which waits 5 seconds for the outputs of a cell that has ended: on a busy machine they may
come later."""

import pytest
from nbval.plugin import IPyNbCell


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Gives each cell's outputs a minute."""
    for item in items:
        if isinstance(item, IPyNbCell):
            item.output_timeout = 60
