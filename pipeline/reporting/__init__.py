"""What a run says about itself: summary and page."""
