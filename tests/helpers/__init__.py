"""What the tests share: reference answers, models that do harm, a Hub, programs that they start."""
