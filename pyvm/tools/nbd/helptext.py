"""The help of ``pyvm-nbd``."""

from __future__ import annotations

HELP = """\
usage: pyvm-nbd [OPTION]... FILE
       pyvm-nbd -L [OPTION]...
Serve a disk image to NBD clients, or list what another server has

Where and to whom:
  -b, --bind=ADDRESS       address to listen at (0.0.0.0)
  -p, --port=PORT          port to listen at (10809)
  -k, --socket=PATH        listen at a Unix socket instead; a socket may also be handed over, as systemd does
  -e, --shared=NUM         how many clients at a time (1); 0: any number
  -t, --persistent         go on when the last client leaves
  --tls-creds=ID           encrypt with an --object tls-creds-x509
  --tls-authz=ID           ask an --object authz-... about the names in clients' certificates
  --tls-hostname=NAME      with -L: the name in the server's certificate
  --fork                   go on in the background once clients can connect
  --pid-file=PATH          file for the process ID

What:
  -x, --export-name=NAME   name of the export (empty)
  -D, --description=TEXT   what clients are told about it
  -o, --offset=OFFSET      where in the image the export starts, in bytes
  -A, --allocation-depth   tell how deep in the chain of images data is
  -B, --bitmap=NAME        tell what a dirty bitmap has; may be repeated
  -r, --read-only          nobody may write
  -s, --snapshot           what clients write goes to a temporary file
  -l, --load-snapshot=SNAPSHOT
                           an internal snapshot: its ID or name, or snapshot.id=ID,snapshot.name=NAME

How the image is opened:
  -f, --format=FORMAT      its format; found out where it is not given
  --image-opts             FILE is options, driver=qcow2,file.filename=...
  -n, --nocache            the same as --cache=none
  --cache=MODE             none, writeback (default), writethrough, directsync or unsafe
  --aio=MODE               threads, native or io_uring
  --discard=MODE           ignore (default) or unmap: what becomes of trimmed blocks
  --detect-zeroes=MODE     off (default), on or unmap: whether zeros that are written are looked for

  -L, --list               list the exports of a server
  --object=TYPE,id=ID,...  make an object, as pyvm's -object does
  -T, --trace=PATTERN      trace events
  -v, --verbose            say when clients leave
  -h, --help; -V, --version
"""
