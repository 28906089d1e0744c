"""Every store keeps the contract of stores."""

import uuid

import pytest

from resilience.testing import StoreContract


class TestMemory(StoreContract):
    is_shared = False

    def setup_method(self):
        self.url = f"memory://{uuid.uuid4().hex}"


class TestFile(StoreContract):
    @pytest.fixture(autouse=True)
    def _place(self, tmp_path):
        self.url = f"file://{tmp_path}/folder/state"


class TestRedis(StoreContract):
    @pytest.fixture(autouse=True)
    def _place(self, valkey_url):
        self.url = valkey_url


class TestPostgres(StoreContract):
    @pytest.fixture(autouse=True)
    def _place(self, postgres_dsn):
        self.url = postgres_dsn
