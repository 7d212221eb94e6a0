import sys

from ops.control.server import main

sys.exit(main())
