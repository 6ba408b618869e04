package link

// Reading keeps what was read of the kernel, and the version of its links and routes that it was
// read of. The zero Reading has read nothing. It is not safe for concurrent use.
type Reading[T any] struct {
	version uint64
	value   T
}

// Get reads again if something changed since.
func (r *Reading[T]) Get(w *Watch, read func() (T, error)) (T, error) {
	version := w.Version()
	if version != 0 && version == r.version {
		return r.value, nil
	}
	value, err := read()
	if err != nil {
		r.version = 0
		return value, err
	}
	r.version, r.value = version, value
	return value, nil
}
