"""`python s3_gate.py KEY SECRET`: moto's S3 server behind a gate that checks what S3 checks and moto does not.

moto 5 takes any signature and any bytes, and forgets the checksums of parts. The gate is written from AWS's
documentation, not from our code: Signature Version 4 in headers and in the query, expiry, headers that are not signed,
the sha256 of a body by its own header and by `x-amz-checksum-sha256`, checksums and least sizes of a multipart upload's
parts. It writes down every request, and fails, waits, cuts or damages where a test says so.
"""

import base64
import datetime as dt
import hashlib
import hmac
import http.client
import json
import re
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, quote, unquote

from moto.server import ThreadedMotoServer

LEAST_PART = 5 * 1024 * 1024
ALGORITHM = "AWS4-HMAC-SHA256"


class Refused(Exception):
    """What S3 does not take: status and code of its answer."""

    def __init__(self, status, code):
        super().__init__(status, code)
        self.status, self.code = status, code


@dataclass
class Gate:
    """What the requests' handlers share."""

    key: str
    secret: str
    moto: tuple = ()
    lock: threading.Lock = field(default_factory=threading.Lock)
    log: list = field(default_factory=list)
    rules: list = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)
    parts: dict = field(default_factory=dict)  # upload id -> {number: (sha256 in base64, size)}
    begun: dict = field(default_factory=dict)  # upload id -> when

    def rule_for(self, op):
        with self.lock:
            for rule in self.rules:
                if rule["op"] == op and rule.get("skip", 0) > 0:
                    rule["skip"] -= 1
                elif rule["op"] == op and rule.get("times", 1) > 0:
                    rule["times"] = rule.get("times", 1) - 1
                    return rule
        return {}

    # What S3 checks -------------------------------------------------------------------------------------------------

    def check(self, request):
        query = dict(parse_qsl(request.asked, keep_blank_values=True))
        header = request.headers.get("authorization")
        if header and "X-Amz-Signature" in query:
            raise Refused(400, "InvalidArgument")  # only one auth mechanism allowed
        if "X-Amz-Signature" in query:
            self.check_query(request, query)
        elif header and header.startswith(ALGORITHM):
            self.check_header(request, header)
        else:
            raise Refused(403, "AccessDenied")
        told = request.headers.get("x-amz-checksum-sha256")
        if told is not None and told != sha256_of(request.body):
            raise Refused(400, "BadDigest")
        if request.op == "UploadPart":
            if told is None:
                raise Refused(400, "InvalidRequest")  # the upload was begun with ChecksumAlgorithm
            if query["uploadId"] not in self.parts:
                raise Refused(404, "NoSuchUpload")

    def check_query(self, request, query):
        given = query.pop("X-Amz-Signature")
        at = dt.datetime.strptime(query["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=dt.UTC)
        seconds = int(query["X-Amz-Expires"])
        if not 1 <= seconds <= 7 * 24 * 3600:
            raise Refused(400, "AuthorizationQueryParametersError")
        if dt.datetime.now(dt.UTC) > at + dt.timedelta(seconds=seconds):
            raise Refused(403, "AccessDenied")  # Request has expired
        signed = query["X-Amz-SignedHeaders"].split(";")
        unsigned = [
            name for name in map(str.lower, request.headers) if name.startswith("x-amz-") and name not in signed
        ]
        if unsigned:
            raise Refused(403, "AccessDenied")  # There were headers present in the request which were not signed
        credential = query["X-Amz-Credential"]
        self.compare(request, query, signed, "UNSIGNED-PAYLOAD", credential, query["X-Amz-Date"], given)

    def check_header(self, request, header):
        fields = dict(re.findall(r"(\w+)=([^,\s]+)", header))
        payload = request.headers["x-amz-content-sha256"]
        if payload != "UNSIGNED-PAYLOAD" and payload != hashlib.sha256(request.body).hexdigest():
            raise Refused(400, "XAmzContentSHA256Mismatch")
        query = dict(parse_qsl(request.asked, keep_blank_values=True))
        signed = fields["SignedHeaders"].split(";")
        at = request.headers["x-amz-date"]
        self.compare(request, query, signed, payload, fields["Credential"], at, fields["Signature"])

    def compare(self, request, query, signed, payload, credential, at, given):
        key, day, region, *_ = credential.split("/")
        if key != self.key:
            raise Refused(403, "InvalidAccessKeyId")
        if "host" not in signed or any(name not in request.headers for name in signed):
            raise Refused(403, "SignatureDoesNotMatch")
        asked = "&".join(
            sorted(f"{quote(name, safe='-_.~')}={quote(value, safe='-_.~')}" for name, value in query.items())
        )
        headers = "".join(f"{name}:{' '.join(request.headers[name].split())}\n" for name in signed)
        text = "\n".join([request.command, request.place, asked, headers, ";".join(signed), payload])
        scope = f"{day}/{region}/s3/aws4_request"
        text = f"{ALGORITHM}\n{at}\n{scope}\n{hashlib.sha256(text.encode()).hexdigest()}"
        signing = f"AWS4{self.secret}".encode()
        for step in (day, region, "s3", "aws4_request"):
            signing = hmac.new(signing, step.encode(), hashlib.sha256).digest()
        if hmac.new(signing, text.encode(), hashlib.sha256).hexdigest() != given:
            raise Refused(403, "SignatureDoesNotMatch")

    def check_parts(self, upload_id, body):
        """Of CompleteMultipartUpload: each part with its checksum, all but the last large enough."""
        known = self.parts.get(upload_id)
        if known is None:
            raise Refused(404, "NoSuchUpload")
        listed = re.findall(r"<Part>(.*?)</Part>", body.decode(), re.DOTALL)
        for index, part in enumerate(listed):
            number = int(re.search(r"<PartNumber>(\d+)<", part).group(1))
            checksum = re.search(r"<ChecksumSHA256>([^<]*)<", part)
            if number not in known or checksum is None or checksum.group(1) != known[number][0]:
                raise Refused(400, "InvalidPart")
            if known[number][1] < LEAST_PART and index < len(listed) - 1:
                raise Refused(400, "EntityTooSmall")


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    gate = None

    def log_message(self, *_):
        pass

    def handle_any(self):
        self.body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.place, _, self.asked = self.path.partition("?")
        if self.place == "/-/control":
            self.control()
            return
        self.op = self.operation()
        rule = self.gate.rule_for(self.op)
        try:
            status, headers, answer = self.serve(rule)
        except Refused as error:
            answer = f"<Error><Code>{error.code}</Code><Message>refused</Message></Error>".encode()
            status, headers = error.status, {"Content-Type": "application/xml", "x-amz-request-id": "1"}
        self.note(status, answer)
        self.answer(status, headers, answer, rule.get("cut"))

    def serve(self, rule):
        if "error" in rule and rule.get("when") != "after":
            raise Refused(*rule["error"])
        self.gate.check(self)
        told = self.forward(rule)
        if rule.get("hold"):
            self.note("held", b"")
            self.gate.released.wait(60)
        if "error" in rule:
            raise Refused(*rule["error"])
        return told

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any

    def operation(self):
        query = {name for name, _ in parse_qsl(self.asked, keep_blank_values=True)}
        key = len(self.place.strip("/").split("/", 1)) > 1
        named = {
            ("PUT", "partNumber"): "UploadPart",
            ("POST", "uploads"): "CreateMultipartUpload",
            ("POST", "uploadId"): "CompleteMultipartUpload",
            ("POST", "delete"): "DeleteObjects",
            ("GET", "uploadId"): "ListParts",
            ("GET", "uploads"): "ListMultipartUploads",
            ("GET", "list-type"): "ListObjectsV2",
            ("DELETE", "uploadId"): "AbortMultipartUpload",
        }
        for (method, name), op in named.items():
            if self.command == method and name in query:
                return op
        return f"{self.command.capitalize()}{'Object' if key else 'Bucket'}"

    def forward(self, rule):
        upload_id = dict(parse_qsl(self.asked)).get("uploadId")
        if self.op == "CompleteMultipartUpload":
            self.gate.check_parts(upload_id, self.body)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in {"host", "expect"}}
        body = self.body
        if rule.get("damage"):  # a storage that loses what it checked
            body = bytes([body[0] ^ 1]) + body[1:]
        moto = http.client.HTTPConnection(*self.gate.moto)
        moto.request(self.command, self.path, body, headers)
        answer = moto.getresponse()
        content = answer.read()
        status = answer.status
        told = {name: value for name, value in answer.getheaders() if name.lower() not in {"connection", "server"}}
        moto.close()
        if status < 300:
            content = self.remember(upload_id, content)
        return status, told, content

    def remember(self, upload_id, content):
        gate, text = self.gate, content.decode("latin-1")
        if self.op == "CreateMultipartUpload":
            made = re.search(r"<UploadId>([^<]*)<", text).group(1)
            gate.parts[made] = {}
            gate.begun[made] = dt.datetime.now(dt.UTC)
        elif self.op == "UploadPart":
            number = int(dict(parse_qsl(self.asked))["partNumber"])
            gate.parts[upload_id][number] = (self.headers["x-amz-checksum-sha256"], len(self.body))
        elif self.op in {"CompleteMultipartUpload", "AbortMultipartUpload"}:
            gate.parts.pop(upload_id, None)
        elif self.op == "ListParts":
            known = gate.parts.get(upload_id, {})

            def with_checksum(found):
                checksum = known[int(found.group(1))][0]
                return f"{found.group(0)}<ChecksumSHA256>{checksum}</ChecksumSHA256>"

            text = re.sub(r"<PartNumber>(\d+)</PartNumber>", with_checksum, text)
        elif self.op == "ListMultipartUploads":
            # moto says 2010 of every upload.
            def begun(found):
                at = gate.begun[found.group(1)].strftime("%Y-%m-%dT%H:%M:%S.000Z")
                return re.sub(r"<Initiated>[^<]*<", f"<Initiated>{at}<", found.group(0))

            text = re.sub(r"<Upload>.*?<UploadId>([^<]*)</UploadId>.*?</Upload>", begun, text, flags=re.DOTALL)
        return text.encode("latin-1")

    def note(self, status, answer):
        with self.gate.lock:
            self.gate.log.append(
                {
                    "op": self.op,
                    "key": unquote(self.place),
                    "status": status,
                    "sent": len(self.body),
                    "got": len(answer),
                    "agent": self.headers.get("user-agent", ""),
                    "headers": {name.lower(): value for name, value in self.headers.items()},
                    "query": self.asked,
                }
            )

    def answer(self, status, headers, content, cut=None):
        self.send_response_only(status)
        length = headers.get("Content-Length") if self.command == "HEAD" else None
        for name, value in headers.items():
            if name.lower() not in {"content-length", "transfer-encoding"}:
                self.send_header(name, value)
        self.send_header("Content-Length", length or str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(content if cut is None else content[:cut])
        if cut is not None:
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)

    def control(self):
        gate, told = self.gate, {}
        with gate.lock:
            if self.command == "POST":
                asked = json.loads(self.body)
                if "rules" in asked:
                    gate.rules = asked["rules"]
                    gate.released.set()  # nobody waits for a rule of before
                    gate.released = threading.Event()
                if asked.get("release"):
                    gate.released.set()
                if asked.get("clear"):
                    gate.log = []
            told = {"log": gate.log}
        self.answer(200, {"Content-Type": "application/json"}, json.dumps(told).encode())


def sha256_of(body):
    return base64.b64encode(hashlib.sha256(body).digest()).decode()


def main():
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    Handler.gate = Gate(sys.argv[1], sys.argv[2], moto.get_host_and_port())
    ThreadingHTTPServer.daemon_threads = True
    ThreadingHTTPServer.request_queue_size = 128
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()  # until whoever started it ends


if __name__ == "__main__":
    main()
