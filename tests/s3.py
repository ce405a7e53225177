"""A real S3 server in a process of its own, for tests: see s3_gate."""

import secrets
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import boto3
import requests
from botocore.config import Config

ACCESS_KEY = "AKIATESTTESTTESTTEST"
SECRET_KEY = "test-secret-test-secret-test-secret-test"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": ACCESS_KEY,
    "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    "AWS_EC2_METADATA_DISABLED": "true",
}
"""What programs that speak to the server need."""

BUCKET = "checkpoints"


class S3Server:
    """Starts the server and makes a bucket; ends with the `with` block.

    Attributes:
        url: the endpoint.
        client: a boto3 client, for a look into the bucket.
    """

    def __init__(self):
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed in __exit__
        program = Path(__file__).with_name("s3_gate.py")
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(program), ACCESS_KEY, SECRET_KEY],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self.url = self._process.stdout.readline().strip()
        if not self.url:
            self._process.wait()
            self._errors.seek(0)
            raise RuntimeError(f"the S3 server did not start: {self._errors.read()[-4000:]}")
        self.client = boto3.client(
            "s3",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            config=Config(request_checksum_calculation="when_required", proxies={}),
        )
        self.client.create_bucket(Bucket=BUCKET)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.client.close()
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            stream.close()

    def storage(self, prefix=None):
        """The address of a place that no other test uses, for `--storage`."""
        return f"s3://{BUCKET}/{prefix or secrets.token_hex(4)}?endpoint={self.url}&region=us-east-1"

    def control(self, **asked):
        with requests.Session() as http:
            http.trust_env = False
            return http.post(f"{self.url}/-/control", json=asked, timeout=10).json()

    def rules(self, *rules):
        """What goes wrong from now on: `op`, `times` (1), `skip` (0), and `error`, `hold`, `cut` or `damage`."""
        self.control(rules=list(rules))

    def log(self, op=None):
        """The requests so far, or those of one operation."""
        return [one for one in self.control()["log"] if op in {None, one["op"]}]

    def wait_for(self, op, status):
        """Until there was such a request."""
        while not any(one["status"] == status for one in self.log(op)):
            time.sleep(0.02)

    def keys(self, storage):
        """The keys of the objects at an address."""
        told = self.client.list_objects_v2(Bucket=BUCKET, Prefix=prefix_of(storage) + "/")
        return [one["Key"] for one in told.get("Contents", [])]

    def uploads(self, storage):
        """The ids of the uploads that are not over at an address."""
        told = self.client.list_multipart_uploads(Bucket=BUCKET, Prefix=prefix_of(storage) + "/")
        return [one["UploadId"] for one in told.get("Uploads", [])]


def prefix_of(storage):
    return storage.partition("?")[0].removeprefix(f"s3://{BUCKET}/")
