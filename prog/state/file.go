package state

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// WriteFile replaces a file atomically.
func WriteFile(path string, data []byte, mode fs.FileMode) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), ".weft-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // fails after the rename
	_, err = tmp.Write(data)
	if err := errors.Join(err, tmp.Chmod(mode), tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}

// Renew replaces the state by an empty one with a new identity. No other goroutine may use the Store
// meanwhile.
func (s *Store) Renew() error {
	path := s.db.Path()
	if err := s.Close(); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("state: %w", err)
	}
	fresh, err := Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	s.db = fresh.db
	return nil
}
