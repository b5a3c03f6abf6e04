"""The demo that ships with the package: a small trojaned traffic-sign classifier and real test signs."""
