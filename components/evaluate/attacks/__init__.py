"""Attacks by text: what someone types who wants the erased concept back, from slips to searches with the weights in hand."""
