package session

import (
	"bytes"
	"encoding/binary"
	"testing"

	"pgregory.net/rapid"
)

// A record that is too long is noticed once its head has arrived, however the stream is cut into pieces.
func TestLongRecordsAreNoticedInAnyPieces(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var stream bytes.Buffer
		end := 0 // the end of the first long record's head
		for range rapid.IntRange(1, 5).Draw(t, "records") {
			size := rapid.SampledFrom([]int{0, 1, 100, maxRecord, maxRecord + 1, 1<<16 - 1}).Draw(t, "size")
			stream.Write(binary.BigEndian.AppendUint16([]byte{22, 3, 3}, uint16(size)))
			if size > maxRecord {
				end = stream.Len()
				break
			}
			stream.Write(make([]byte, size))
		}
		var r records
		data := stream.Bytes()
		for at := 0; at < len(data); {
			n := rapid.IntRange(1, len(data)-at).Draw(t, "piece")
			long := r.long(data[at : at+n])
			at += n
			if want := end > 0 && at >= end; long != want {
				t.Fatalf("after %d bytes, a long record was noticed: %v, want %v", at, long, want)
			}
			if long {
				return
			}
		}
	})
}
