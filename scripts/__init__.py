"""Set-up of one host, behind `make setup` and `make install`. Standard library only; knows no Django."""
