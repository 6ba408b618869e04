package datapath

import (
	"reflect"
	"sync"

	"golang.zx2c4.com/wireguard/conn"
)

// twin returns a bind of wireguard-go that sends by the sockets of another one, but shares nothing else
// with it.
//
// A StdNetBind keeps addresses for both families in one pool. If an address was last used for IPv4, it has
// room for 4 bytes, and the next IPv6 packet goes to an address of which only the first 4 bytes are right. So
// bind sends IPv6 by a twin, with a pool of its own. The fields have no names outside of wireguard-go.
func twin(of *conn.StdNetBind) *conn.StdNetBind {
	out := conn.NewStdNetBind().(*conn.StdNetBind)
	from, to := reflect.ValueOf(of).Elem(), reflect.ValueOf(out).Elem()
	for i := range from.NumField() {
		kind := from.Field(i).Type()
		if kind == reflect.TypeFor[sync.Pool]() || kind == reflect.TypeFor[sync.Mutex]() {
			continue
		}
		unlocked(to.Field(i)).Set(unlocked(from.Field(i)))
	}
	return out
}

// unlocked returns a field without a name outside of its package, so that it can be used.
func unlocked(field reflect.Value) reflect.Value {
	return reflect.NewAt(field.Type(), field.Addr().UnsafePointer()).Elem()
}
