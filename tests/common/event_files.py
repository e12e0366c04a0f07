"""Writers of the files of event cameras, byte by byte, for the readers to be tried on."""

import struct


def nmnist_bytes(rows):
    return b"".join(bytes([x, y, p << 7 | t >> 16, t >> 8 & 255, t & 255]) for t, x, y, p in rows)


def aedat2_bytes(rows, header=b"#!AER-DAT2.0\r\n# This is a raw AE data file - do not edit\r\n"):
    return header + b"".join(struct.pack(">II", y << 8 | x << 1 | p, t) for t, x, y, p in rows)


def aedat3_packet(rows, *, kind=1, overflow=0):
    events = [struct.pack("<II", x << 17 | y << 2 | p << 1 | valid, t) for t, x, y, p, valid in rows]
    header = struct.pack("<2h6i", kind, 0, 8, 4, overflow, len(rows), len(rows), len(rows))
    return header + b"".join(events)


AEDAT3 = b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n#!END-HEADER\r\n"


def aedat4_bytes(rows):
    """An AEDAT 4.0 file of one uncompressed packet: two FlatBuffers, with their tables written by hand."""
    description = (
        b'<dv version="2.0"><node name="outInfo"><node name="0"><attr key="typeIdentifier">EVTS</attr>'
        b'<node name="info"><attr key="sizeX">128</attr><attr key="sizeY">128</attr></node>'
        b"</node></node></dv>"
    )
    header = struct.pack("<I4s5H2xiiII", 20, b"IOHE", 10, 12, 4, 0, 8, 12, 0, 4, len(description))
    header += description + b"\0"
    packet = struct.pack("<I4s3H2xiII", 16, b"EVTS", 6, 8, 4, 8, 4, len(rows))
    packet += b"".join(struct.pack("<qhh?3x", *row) for row in rows)
    sized = lambda data: struct.pack("<I", len(data)) + data
    return b"#!AER-DAT4.0\r\n" + sized(header) + struct.pack("<2i", 0, len(packet) + 4) + sized(packet)
