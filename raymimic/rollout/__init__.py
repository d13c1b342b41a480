"""Playing policies: episodes, their statistics and videos, and Ray actors that play them."""
