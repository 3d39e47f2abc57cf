"""`python -m workers.demo`."""

from workers.demo.main import main

if __name__ == "__main__":
    main()
