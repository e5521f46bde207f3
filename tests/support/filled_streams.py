"""Streams with numbered records in them."""


def fill(db, count, name="s", partitions=4, start=0):
    s = db.stream(name, partitions=partitions)
    for number in range(start, start + count):
        s.append(number, key=number)
    return s
