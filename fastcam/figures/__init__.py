"""Colours, overlays and figures. Nothing else imports matplotlib, and this only where something is drawn."""
