"""The tests: by floor (test_t0_… to test_t5_…), with their tools in support/ and real images in lab/."""
