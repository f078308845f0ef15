"""TLS: contexts from settings, and what a failed handshake means to an operator.

TLS 1.3 and nothing older, whatever the machine allows otherwise. Knows no connections.
"""

import ssl
from pathlib import Path

from ecd.errors import ConfigError
from ecd.trust.files import read_private
from ecd.trust.settings import CloudTls, EdgeTls

# OpenSSL's X509_V_ERR_*, as SSLCertVerificationError.verify_code tells them.
NOT_YET_VALID, EXPIRED, SELF_SIGNED, HOST_NAME, IP_ADDRESS = 9, 10, 18, 62, 64


def cloud_context(tls: CloudTls) -> ssl.SSLContext:
    """What the cloud shakes hands with. Raises ConfigError when a file cannot be used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # An edge stays connected: it has no use for tickets, and each handshake proves its certificate anew.
    context.num_tickets = 0
    _load_own(context, tls.certificate, tls.key)
    if tls.client_ca is not None:
        _load_ca(context, tls.client_ca, "tls.client_ca")
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def edge_context(tls: EdgeTls) -> ssl.SSLContext:
    """What the edge shakes hands with: the cloud must prove its name. Raises ConfigError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if tls.ca is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    else:
        _load_ca(context, tls.ca, "tls.ca")
    if tls.certificate is not None and tls.key is not None:
        _load_own(context, tls.certificate, tls.key)
    return context


def _load_own(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    def refuse() -> str:
        # Or OpenSSL would ask for a password at the terminal.
        raise ConfigError(f"tls.key: {key} is encrypted; the daemon needs it without a password")

    read_private(key, "tls.key")
    try:
        context.load_cert_chain(certificate, key, refuse)
    except ssl.SSLError as e:
        reason = "is not its key" if e.reason == "KEY_VALUES_MISMATCH" else f"are no PEM files: {e.reason}"
        raise ConfigError(f"tls: {certificate} and {key}: the second {reason}") from None
    except OSError as e:
        raise ConfigError(f"tls.certificate: cannot read {certificate}: {e.strerror}") from None


def _load_ca(context: ssl.SSLContext, ca: Path, setting: str) -> None:
    try:
        context.load_verify_locations(ca)
    except ssl.SSLError as e:
        raise ConfigError(f"{setting}: {ca} is no PEM file with certificates: {e.reason}") from None
    except OSError as e:
        raise ConfigError(f"{setting}: cannot read {ca}: {e.strerror}") from None


def why_edge_failed(error: OSError, server_name: str) -> str | None:
    """Why the edge could not shake hands with the cloud; None: it is not for TLS to say."""
    match error:
        case ssl.SSLCertVerificationError(verify_code=code):
            if code == EXPIRED:
                return "its certificate has expired; renew it and send the cloud SIGHUP"
            if code == NOT_YET_VALID:
                return "its certificate is not valid yet; compare the clocks of edge and cloud"
            if code in (HOST_NAME, IP_ADDRESS):
                return (
                    f"its certificate is not for {server_name}; set `tls.server_name` to a name that it has, "
                    "or make one for this name"
                )
            signer = "itself" if code == SELF_SIGNED else "somebody"
            return (
                f"its certificate was signed by {signer} whom this edge does not trust "
                f"({error.verify_message}); set `tls.ca` to the file with the CA's certificate"
            )
        case ssl.SSLError(reason="WRONG_VERSION_NUMBER"):
            return "it speaks no TLS; set `tls` at the cloud"
        case ssl.SSLError():
            return f"the TLS handshake failed ({error.reason}); both ends must speak TLS 1.3"
        case ConnectionResetError():
            return (
                "it ended the TLS handshake; it may speak no TLS 1.3, or demand a certificate of this edge "
                "(`tls.certificate`). Its log says why"
            )
        case _:
            return None


def why_cloud_failed(error: OSError) -> str:
    """Why the cloud could not shake hands with an edge."""
    match error:
        case ssl.SSLCertVerificationError(verify_code=code):
            if code == EXPIRED:
                return "its certificate has expired; give the edge a new one"
            return (
                f"its certificate is not signed by the CA of `tls.client_ca` ({error.verify_message}); "
                "give the edge one that is"
            )
        case ssl.SSLError(reason="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
            return "it showed no certificate; set `tls.certificate` and `tls.key` at the edge"
        case ssl.SSLError(reason="UNSUPPORTED_PROTOCOL"):
            return "it offered no TLS 1.3, and nothing older is spoken here"
        case ssl.SSLError(reason="WRONG_VERSION_NUMBER" | "HTTP_REQUEST"):
            return "it speaks no TLS; set `tls` at the edge"
        case ssl.SSLError():
            return f"the TLS handshake failed ({error.reason})"
        case ConnectionResetError():
            return (
                "it ended the TLS handshake; it may not trust this cloud's certificate, and its log says so"
            )
        case _:
            return f"{error or 'it did not finish the TLS handshake in time'}"
