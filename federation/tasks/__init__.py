"""What a study computes. Each task is two pure functions: a silo's contributions, one row a customer,
and what the server makes of their noisy sum. The server's half is post-processing: it costs no ε, and
anyone who holds the sums can do it again (`federation.verification` does).
"""
