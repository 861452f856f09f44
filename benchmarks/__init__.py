"""Measurements of Miehistö against bare CRIU and its peers, as ratios taken side by side in one run."""
