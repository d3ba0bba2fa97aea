"""Who is who: SPIFFE identities in certificates, the built-in certificate authority, and mutual TLS."""
