"""What people look at: data first, a template second, one self-contained HTML page."""
