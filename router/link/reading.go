package link

// Reading caches a value that was read from the kernel, with the Watch's version at that time. The
// zero Reading is empty. It is not safe for concurrent use.
type Reading[T any] struct {
	version uint64
	value   T
}

// Get returns the cached value. If links or routes have changed since, it reads the value again.
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
